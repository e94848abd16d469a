"""Which sizes a rewriting is verified on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.verification.inputs import Inputs
from fxprune.verification.small import small_inputs
from fxprune.verification.subject import Subject


class Stages(nn.Module):
    """Convolutions that halve a map, then a pooling."""

    def __init__(self, halvings: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(halvings)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convs(x).mean((2, 3)))


class Positions(nn.Module):
    """Positions of one number of tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 6))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.table)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights: Tensor = (self.q(x) @ self.k(x).mT).masked_fill(mask, -1e9).softmax(-1)
        return weights @ x


class Pools(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool1d(x, 4)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 20 else x


class Embeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def sizes(model: nn.Module, *example: Tensor, frontend: Any = "trace") -> list[tuple[int, ...]]:
    gm = fxprune.capture(model.eval(), example, frontend=frontend)
    before, mode = gm.code, gm.training
    found = small_inputs(gm, Inputs(example, {}), fxprune.analyze(gm).shapes())
    assert gm.code == before
    assert gm.training is mode
    return [tuple(t.shape) for t in found.args]


@pytest.mark.parametrize(
    ("build", "example", "expected"),
    [
        (lambda: Stages(5), [(2, 3, 224, 224)], [(2, 3, 64, 64)]),  # 224 -> 7, so 64 -> 2
        (lambda: Stages(3), [(2, 3, 224, 224)], [(2, 3, 16, 16)]),
        (lambda: Stages(3), [(1, 3, 48, 96)], [(1, 3, 16, 16)]),
        (lambda: Stages(1), [(2, 3, 6, 6)], [(2, 3, 6, 6)]),
        (Positions, [(2, 16, 6)], [(2, 16, 6)]),
        (Pools, [(2, 3, 64)], [(2, 3, 8)]),
        (Pools, [(2, 3, 61)], [(2, 3, 30)]),
        (nn.Flatten, [(2, 3, 20)], [(2, 3, 2)]),
        (lambda: nn.Linear(64, 2), [(2, 64)], [(2, 64)]),
    ],
)
def test_sizes(build: Callable[[], nn.Module], example: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> None:
    assert sizes(build(), *(torch.randn(shape) for shape in example)) == expected


def test_equal_sizes_of_several_inputs_are_one_size() -> None:
    x, mask = torch.randn(2, 32, 6), torch.ones(32, 32, dtype=torch.bool).triu(1)
    assert sizes(Attends(), x, mask) == [(2, 2, 6), (2, 2)]


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_sizes_that_the_graph_checks_stay(frontend: str) -> None:
    assert sizes(Decides(), torch.randn(2, 40), frontend=frontend) == [(2, 40)]


def test_samples_stay() -> None:
    assert sizes(nn.Flatten(), torch.randn(20, 3, 20)) == [(20, 3, 2)]


def test_tokens() -> None:
    assert sizes(Embeds(), torch.randint(0, 50, (2, 32))) == [(2, 2)]


def test_without_shapes_the_inputs_stay() -> None:
    inputs = Inputs((torch.randn(2, 3, 32, 32),), {})
    assert small_inputs(fxprune.capture(Stages(2), inputs.args), inputs, None) is inputs


def test_prune_compares_small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, tuple[int, ...]]] = []
    run = Subject.run

    def noted(self: Any, inputs: Inputs, *, training: bool) -> Any:
        seen.append((training, tuple(inputs.args[0].shape)))
        return run(self, inputs, training=training)

    monkeypatch.setattr(Subject, "run", noted)
    fxprune.prune(Stages(5), torch.randn(4, 3, 224, 224), 0.5)
    compared = [each for each in seen if each[1][0] != 4]
    assert compared == [(False, (1, 3, 64, 64)), (True, (2, 3, 64, 64))] * 2


def test_a_model_that_needs_more_is_compared_on_the_example() -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(2, 3, 8)).flatten(0, 1)

    gm = fxprune.capture(Needs(), torch.randn(6, 5), frontend="trace")
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    assert fxprune.shrink(gm).get_parameter("a.weight").shape == (4, 5)
