"""What a traced model's code decides by sizes is decided for all batch sizes, or the model is not traced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
import fxprune.functional
from fxprune.abstract.propagation import PROPAGATION
from tests.compare import relative_error

Code = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    table: Tensor

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)
        self.register_buffer("table", torch.randn(20, 8))
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, self.first(x)))


def by_width(net: Any, x: Tensor) -> Tensor:
    if x.shape[-1] != 8:
        raise ValueError(f"expected 8, got {x.shape[-1]}")
    return x * 2 if x.shape[1] > 3 else x


def by_layer(net: Any, x: Tensor) -> Tensor:
    y = net.norm(x.transpose(1, 2)).transpose(1, 2)
    return x + y if y.shape == x.shape else x


def loop_over_parts(net: Any, x: Tensor) -> Tensor:
    return torch.stack([F.relu(part) * i for i, part in enumerate(x.chunk(4, 1))]).sum(0)


def loop_over_places(net: Any, x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for i in range(x.shape[1]):
        total = total + x[:, i] / (i + 1)
    return total


def length(net: Any, x: Tensor) -> Tensor:
    return x / len(x.shape)


def star(net: Any, x: Tensor) -> Tensor:
    *outer, width = x.shape
    return x.reshape(*x.shape[:-1], 2, width // 2).flatten(-2) / len(outer)


def limits_of_a_dtype(net: Any, x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).min / 2)


def shapes_of_a_buffer(net: Any, x: Tensor) -> Tensor:
    table = net.table
    return x + table[: x.shape[1]] if table.shape[0] >= x.shape[1] else x


def equal_batches(net: Any, x: Tensor) -> Tensor:
    mask = (x.sum(-1) > 0).to(x.dtype)
    if mask.shape[0] != x.shape[0]:
        mask = mask.expand(x.shape[0], -1)
    return x * mask[..., None]


def more_than_one(net: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])[None]
    if places.shape[0] != x.shape[0]:
        places = places.expand(x.shape[0], -1)
    return x + net.table[places]


def padded(net: Any, x: Tensor) -> Tensor:
    places, width = x.size()[-2:]
    return F.pad(x, (0, max(width % 3, 0), 0, max(places % 3, 0)))[:, :places, :width]


def other_shape(net: Any, x: Tensor) -> Tensor:
    return x if x.shape == (7, 9, 9) else x * 3


def squeezed(net: Any, x: Tensor) -> Tensor:
    return x * 2 if x[:, 2:].squeeze(1).dim() == 3 else x


def parts(net: Any, x: Tensor) -> Tensor:
    return x * len(x.split(2, 1))


def a_share_of_a_size(net: Any, x: Tensor) -> Tensor:
    return x * x[:, : int(x.shape[1] * 0.5)].mean(1, keepdim=True) + int(x.shape[1] / 3)


def part_of_a_shape(net: Any, x: Tensor) -> Tensor:
    return x * len(x.shape[: x.shape[1] - 2])


def a_computed_rank(net: Any, x: Tensor) -> Tensor:
    return x * x.reshape(x.shape + (1,) * (x.shape[1] - 3)).dim()


def by_a_computed_rank(net: Any, x: Tensor) -> Tensor:
    return x * 2 if x.reshape(x.shape + (1,) * (x.shape[1] - 3)).dim() == 4 else x


def by_rank(net: Any, x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.ndim)), keepdim=True) + x if x.dim() in (3, 4) and not x.is_nested else x


def unpacked(net: Any, x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1] + (1,)) + x.new_zeros(*x.size()[:2], 1) + x


BY_SIZES = [
    by_width, by_layer, loop_over_parts, loop_over_places, shapes_of_a_buffer, equal_batches, more_than_one, padded,
    other_shape, squeezed, parts, part_of_a_shape, a_share_of_a_size, by_a_computed_rank,
]  # fmt: skip
BY_RANKS = [length, star, limits_of_a_dtype, by_rank, unpacked]
DECIDED = [*BY_SIZES, *BY_RANKS]


@pytest.mark.parametrize("code", DECIDED)
def test_decided_by_what_is_the_same_for_every_batch(code: Code) -> None:
    model = Net(code).double()
    gm = fxprune.capture(model, torch.randn(2, 4, 6, dtype=torch.float64), frontend="trace")
    assert isinstance(gm.first, nn.Linear)
    assert isinstance(gm.last, nn.Linear)
    for batch, training in itertools.product((1, 2, 3, 9), (False, True)):
        x = torch.randn(batch, 4, 6, dtype=torch.float64)
        assert relative_error(gm.train(training)(x), model.train(training)(x)) <= 1e-12


@pytest.mark.parametrize("code", DECIDED)
def test_what_one_capture_found_out_leaves_the_next_as_it_is(code: Code) -> None:
    PROPAGATION.clear()
    graphs = [fxprune.capture(Net(code), torch.randn(2, 4, 6), frontend="trace") for _ in range(3)]
    assert graphs[0].code == graphs[1].code == graphs[2].code


@pytest.mark.parametrize("code", BY_SIZES)
def test_other_sizes_are_refused_by_the_graph(code: Code) -> None:
    gm = fxprune.capture(Net(code), torch.randn(2, 4, 6), frontend="trace")
    with pytest.raises(RuntimeError, match="'x' does not have the shape that the graph was captured with"):
        gm(torch.randn(2, 5, 6))


@pytest.mark.parametrize("code", BY_RANKS)
def test_code_that_decides_by_ranks_takes_other_sizes(code: Code) -> None:
    model = Net(code).double()
    gm = fxprune.capture(model, torch.randn(2, 4, 6, dtype=torch.float64), frontend="trace")
    for sizes in ((3, 7), (1, 1), (4, 2)):
        x = torch.randn(*sizes, 6, dtype=torch.float64)
        assert relative_error(gm(x), model(x)) <= 1e-12
    with pytest.raises(RuntimeError, match="'x' has the wrong number of dimensions"):
        gm(torch.randn(3, 6, dtype=torch.float64))


def test_a_transformer_encoder_of_torch_is_traced_for_every_length() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    gm = fxprune.capture(model, torch.randn(2, 5, 8, dtype=torch.float64), frontend="trace")
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    assert relative_error(gm(x), model(x)) <= 1e-12


@pytest.mark.parametrize("code", [by_width, loop_over_parts, loop_over_places, more_than_one])
def test_scripted_and_pruned(code: Code) -> None:
    model = Net(code).double().eval()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    gm = fxprune.capture(model, x)
    scripted = fxprune.to_torchscript(gm, x, method="script")
    assert relative_error(scripted(x[:2]), model(x[:2])) <= 1e-12
    slim = fxprune.prune(model, x, 0.5)  # verified
    assert slim.get_parameter("first.weight").shape == (4, 6)


def test_what_only_decisions_were_for_is_not_in_the_graph() -> None:
    gm = fxprune.capture(Net(limits_of_a_dtype), torch.randn(2, 4, 6), frontend="trace")
    assert [node.target for node in gm.graph.nodes if node.op == "call_function"] == [fxprune.functional.layers.check_shape]
    gm = fxprune.capture(Net(shapes_of_a_buffer), torch.randn(2, 4, 6), frontend="trace")
    assert len(gm.graph.find_nodes(op="get_attr")) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_limits_are_those_of_the_dtype_whatever_lies_in_memory(dtype: torch.dtype) -> None:
    class Limits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(torch.finfo(x.dtype).min / 2) + (x > 0).byte().clamp(max=torch.iinfo((x > 0).byte().dtype).max // 2)

    for _ in range(3):
        gm = fxprune.capture(Limits(), torch.randn(2, 3, dtype=dtype), frontend="trace")
        limits = [
            value for node in gm.graph.nodes if node.target == "clamp" for value in (*node.args[1:], *node.kwargs.values())
        ]
        assert limits == [torch.finfo(dtype).min / 2, 127]
    assert isinstance(torch.finfo(dtype), torch.finfo)  # the names are torch's again


def few(net: Any, x: Tensor) -> Tensor:
    return x if x.shape[0] < 100 else -x


def exactly_eight(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape[0] == 8 else x


def whole_shape(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape == (8, 4, 8) else x


def one_of_the_sizes(net: Any, x: Tensor) -> Tensor:
    return -x if 64 in x.shape else x


def even(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape[0] % 2 else x


def seven_less(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape[0] - 7 == 0 else x


def multiple_of_seven(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape[0] % 7 == 0 else x


def loop_over_samples(net: Any, x: Tensor) -> Tensor:
    return torch.stack([sample * i for i, sample in enumerate(x)])


def values(net: Any, x: Tensor) -> Tensor:
    return x if (x > 0).all() else -x


def device(net: Any, x: Tensor) -> Tensor:
    return x if x.device.type == "cpu" else -x


def on_no_device(net: Any, x: Tensor) -> Tensor:
    return -x if x.is_meta else x


UNDECIDED = [
    few, exactly_eight, whole_shape, one_of_the_sizes, even, seven_less, multiple_of_seven, loop_over_samples, values, device,
    on_no_device,
]  # fmt: skip


@pytest.mark.parametrize("code", UNDECIDED)
def test_undecided(code: Code) -> None:
    with pytest.raises(fxprune.CaptureError, match=r"trace: TraceError: .*(needs the value of node|decides by)"):
        fxprune.capture(Net(code), torch.randn(2, 4, 6), frontend="trace")


@pytest.mark.parametrize("code", [few, exactly_eight, whole_shape])
def test_whatever_front_end_no_batch_size_is_computed_wrongly(code: Code) -> None:
    model = Net(code).double().eval()
    with pytest.warns(fxprune.CaptureWarning, match="batch"):
        gm = fxprune.capture(model, torch.randn(2, 4, 6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="shape"):
        gm(torch.randn(8, 4, 6, dtype=torch.float64))


def only_one(net: Any, x: Tensor) -> Tensor:
    return -x if x.shape[0] == 1 else x


def test_code_that_is_another_for_one_sample() -> None:
    with pytest.raises(fxprune.CaptureError, match="does not give the model's result"):
        fxprune.capture(Net(only_one), torch.randn(1, 4, 6), frontend="trace")


def test_the_random_state_and_the_mode_are_left_alone() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.last = nn.Dropout(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.drop(x)
            return self.last(y) if y.shape[1] == 6 else y

    model = Dropping().eval()
    state = torch.get_rng_state()
    gm = fxprune.capture(model, torch.randn(2, 6, generator=torch.Generator()), frontend="trace")
    assert torch.equal(state, torch.get_rng_state())
    assert not gm.training
    assert "training" not in vars(nn.Module)
    assert gm.get_submodule("drop").training is False
