"""Real models and their graphs are compared as programs, with no fallback to numbers that nobody would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.frontends.equivalence import check
from fxprune.frontends.equivalence.program import Programs
from fxprune.frontends.model.snapshot import Changes
from tests.zoo import shim
from tests.zoo.models import build, example

shim.install()
pytest.importorskip("timm")
models = pytest.importorskip("torchvision.models")
transformers = pytest.importorskip("transformers")

# What these libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Changes | None]:
    """Return a list that grows with each comparison of programs by its answer; a comparison of numbers is an error."""
    found: list[Changes | None] = []
    compare = Programs.same

    def same(self: Programs, *args: Any) -> Changes | None:
        found.append(compare(self, *args))
        return found[-1]

    def fail(*args: Any) -> None:
        raise AssertionError("numbers were compared")

    monkeypatch.setattr(Programs, "same", same)
    monkeypatch.setattr(check, "_check_numbers", fail)
    return found


def bert() -> nn.Module:
    # Without a mask of its own: the code looks into one that it is given.
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def image() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


def words() -> torch.Tensor:
    return torch.randint(0, 50, (2, 6))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "resnet18": (models.resnet18, image),
    "mobilenet_v3_small": (models.mobilenet_v3_small, image),
    "vision_transformer": (lambda: models.VisionTransformer(64, 16, 2, 2, 16, 32), image),
    "bert": (bert, words),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_common_models_are_compared_as_programs(name: str, training: bool, answers: list[Changes | None]) -> None:
    make, inputs = MODELS[name]
    fxprune.capture(make().train(training), inputs(), frontend="trace")
    assert answers
    assert None not in answers


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "googlenet", "swin_t", "convnext_atto", "vit_tiny_patch16_224", "vit"])
def test_models_of_the_zoo_are_compared_as_programs(name: str, answers: list[Changes | None]) -> None:
    args, kwargs = example(name, 2)
    fxprune.capture(build(name), args, kwargs, frontend="trace")
    assert answers
    assert None not in answers
