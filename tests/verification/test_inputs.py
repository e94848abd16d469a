"""verify: the inputs it runs on, batch sizes, precisions, kinds of outputs, and wrong arguments."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputError, PruningTypeError, PruningValueError, VerificationError
from fxprune.graph.interpreter import in_order
from fxprune.verification.differences import named_leaves, node_error, relative_error, select
from fxprune.verification.inputs import Inputs, randomised, resized
from fxprune.verification.verify import verify


class Function(nn.Module):
    """A model without tensors."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def compare(one: Callable[..., Any], other: Callable[..., Any], *args: Any, **options: Any) -> float:
    return verify(Function(one), Function(other), args, **options)


class Baked(nn.Module):
    def __init__(self, batch: int = -1) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y.view(self.batch, 2, 2)


def test_another_batch_size_is_tried_unless_the_reference_cannot() -> None:
    free, fixed = Baked(), Baked(2)
    fixed.load_state_dict(free.state_dict())
    x = torch.randn(2, 4)
    assert verify(fixed, free, x) == 0.0
    assert verify(free, fixed, x, other_batch=False) == 0.0
    with pytest.raises(VerificationError, match="the candidate fails in eval mode at batch size 3, where the reference runs"):
        verify(free, fixed, x)
    exported = fxprune.capture(free, x, frontend="export")
    with pytest.raises(VerificationError, match="in eval mode at batch size 3"):
        verify(exported, fixed, x)


@pytest.mark.filterwarnings("ignore::fxprune.CaptureWarning")
def test_batch_size_of_an_exported_graph_is_as_free_as_the_graph_says() -> None:
    fixed = Baked(2)
    reference = fxprune.capture(fixed, torch.randn(2, 4), frontend="export")
    assert verify(reference, fixed, torch.randn(2, 4)) == 0.0


def test_batch_of_one_is_enough_where_batch_norms_need_two() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert verify(model, copy.deepcopy(model), torch.randn(1, 3)) == 0.0
    with pytest.raises(InputError, match=r"the reference itself fails in train mode .*Expected more than 1 value per channel"):
        verify(model, copy.deepcopy(model), torch.randn(1, 3), other_batch=False)
    wrong = copy.deepcopy(model)
    wrong[1].momentum = 0.5  # type: ignore[assignment]
    with pytest.raises(VerificationError, match=r"in train mode at batch size 2: buffer '1\.running_mean' after the run"):
        verify(model, wrong, torch.randn(1, 3))


def test_random_inputs_are_like_the_given_ones_and_the_same_each_time() -> None:
    values = torch.randn(50, 40, dtype=torch.float64) * 3 + 7
    values[0, 0] = math.nan
    values[1, 1] = -math.inf
    tokens, mask = torch.arange(12).view(2, 3, 2), torch.tensor([True, False])
    given = Inputs((values, tokens, mask, 3), {"constant": torch.ones(400), "empty": torch.ones(0), "none": None})
    state = torch.get_rng_state()
    drawn, again = randomised(given), randomised(given)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(drawn) == str(again)
    floats, integers, flags, number = drawn.args
    assert (floats == values).sum() == 1
    assert floats[0, 0].isnan()
    assert floats[1, 1] == -math.inf
    finite = floats[floats.isfinite()]
    assert abs(float(finite.mean()) - 7) < 0.5
    assert abs(float(finite.std()) - 3) < 0.5
    assert not torch.equal(integers, tokens)
    assert sorted(map(tuple, integers.view(-1, 2).tolist())) == sorted(map(tuple, tokens.view(-1, 2).tolist()))
    assert (flags is mask, number, drawn.kwargs["none"], drawn.kwargs["empty"].numel()) == (True, 3, None, 0)
    assert abs(float(drawn.kwargs["constant"].std()) - 1) < 0.2


def test_other_batch_sizes_repeat_the_samples() -> None:
    inputs = resized(Inputs((torch.tensor([[1], [2]]), torch.ones(4), torch.tensor(5)), {}), 2, 3)
    assert [t.tolist() for t in inputs.args] == [[[1], [2], [1]], [1.0] * 4, 5]


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_keyword_inputs_reach_the_nodes_of_their_names(frontend: Any) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, shift: Tensor | None = None, *, scale: Tensor) -> Tensor:
            return x * scale

    x, scale = torch.ones(2, 3), torch.full((2, 3), 2.0)
    gm = fxprune.capture(Net(), x, {"scale": scale}, frontend=frontend)
    values = [value for value in in_order(gm, Inputs((x,), {"scale": scale})) if value is not None]
    assert len(values) == 2
    assert values[0] is x
    assert values[1] is scale
    wrong = copy.deepcopy(gm)
    (product,) = [node for node in wrong.graph.nodes if node.name.startswith("mul")]
    product.target = torch.add
    wrong.recompile()
    with pytest.raises(VerificationError, match=rf"first node that differs is '{product.name}' \(call_function add\)"):
        verify(gm, wrong, x, {"scale": scale})


def test_examples_are_taken_where_random_inputs_are_not_finite_or_not_accepted() -> None:
    def positive(x: Tensor) -> Tensor:
        torch._assert(bool((x > 0).all()), "positive only")
        return x.log()

    x = torch.rand(20, 4) + 0.1
    for function in (positive, torch.log):
        assert compare(function, function, x) == 0.0
        with pytest.raises(VerificationError, match="relative error"):
            compare(function, lambda x: (x.nan_to_num(1.0).abs() + 0.1).log(), x)


def test_nan_and_infinity_belong_in_the_same_places() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])

    def divide(x: Tensor) -> Tensor:
        return torch.tensor([1.0, -1.0]) / (x - x)

    assert compare(divide, divide, x) == 0.0
    for wrong in (lambda x: -divide(x), lambda x: divide(x) * 0, lambda x: divide(x).nan_to_num(0, 1, 1)):
        with pytest.raises(VerificationError, match="infinite relative error: NaN, infinities or integers differ"):
            compare(divide, wrong, x)
    with pytest.raises(VerificationError, match="infinite relative error"):
        compare(lambda x: x, lambda x: x / 0 * 0, x)


@dataclasses.dataclass
class Output:
    logits: Tensor
    rest: Any


OUTPUTS: list[tuple[Any, Any, str]] = [
    (lambda x: (x, x), lambda x: (x, x + 1), r"output\[1\]: relative error"),
    (lambda x: {"a": [x]}, lambda x: {"a": [2 * x]}, r"output\['a'\]\[0\]: relative error 1\.0e\+00"),
    (lambda x: Output(x, None), lambda x: Output(-x, None), r"output\.logits: relative error 2\.0e\+00"),
    (lambda x: (x, 1), lambda x: (x, 2), r"output\[1\]: 1 in the reference, 2 in the candidate"),
    (lambda x: x, lambda x: x[:1], r"output: float64 \(2, 3\) in the reference, float64 \(1, 3\) in the candidate"),
    (lambda x: x, lambda x: x.long(), r"output: float64 \(2, 3\) in the reference, int64 \(2, 3\) in the candidate"),
    (lambda x: (x, x), lambda x: (x,), r"output\[1\]: float64 \(2, 3\) in the reference, None in the candidate"),
    (lambda x: x.sum(1).argmax(0), lambda x: x.sum(1).argmin(0), "NaN, infinities or integers differ"),
    (torch.fft.fft, lambda x: torch.fft.fft(x).conj(), "output: relative error"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), OUTPUTS)
def test_every_kind_of_output_is_compared_and_named(right: Any, wrong: Any, message: str) -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert compare(right, right, x) == 0.0
    with pytest.raises(VerificationError, match=message):
        compare(right, wrong, x)


def test_code_that_names_single_precision_runs_in_double() -> None:
    def single(x: Tensor) -> Tensor:
        y = x.float() + torch.zeros(x.shape, dtype=torch.float32) + torch.arange(3) / 7 + torch.tensor(0.1)
        return y.softmax(-1, dtype=torch.float32) @ torch.ones(3, 3) / 3

    def double(x: Tensor) -> Tensor:
        return (x + (torch.arange(3, dtype=torch.float64) / 7 + 0.1)).softmax(-1) @ torch.ones(3, 3).double() / 3

    tenth = float(torch.tensor(0.1))
    assert compare(single, double, torch.randn(2, 3), tolerance=1e-7) < 1e-7
    assert compare(single, lambda x: double(x + (tenth - 0.1)), torch.randn(2, 3)) < 1e-14
    assert compare(single, lambda x: double(x).float(), torch.randn(2, 3), precision="own") < 1e-6


def test_graph_that_cannot_run_in_double_precision_runs_in_its_own() -> None:
    weight = torch.randn(3, 3)  # no buffer, so that nobody converts it
    linear = nn.Linear(3, 3)
    assert compare(lambda x: x @ weight, lambda x: x @ weight, torch.randn(2, 3)) == 0.0
    assert verify(linear, Function(lambda x: x @ linear.weight.float().t() + linear.bias), torch.randn(2, 3)) < 1e-5
    with pytest.raises(VerificationError, match=r"\(tolerance 1e-03\)"):
        compare(lambda x: x @ weight, lambda x: x @ weight * 1.01, torch.randn(2, 3))


def test_tolerance_decides() -> None:
    x = torch.randn(2, 3)
    assert compare(lambda x: x, lambda x: x * 1.001, x, tolerance=0.01) == pytest.approx(1e-3)
    with pytest.raises(VerificationError, match=r"relative error 1\.0e-03 \(tolerance 1e-04\)"):
        compare(lambda x: x, lambda x: x * 1.001, x, tolerance=1e-4)
    assert compare(lambda x: x - x, lambda x: x - x + 1e-16, x) <= 1e-6


def test_only_the_modes_asked_for_are_run() -> None:
    wrong = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    right = copy.deepcopy(wrong)
    wrong[1].get_buffer("running_mean").add_(1)
    with pytest.raises(VerificationError, match="in eval mode"):
        verify(right, wrong, torch.randn(4, 3))
    with pytest.raises(VerificationError, match="in train mode"):
        verify(right, wrong, torch.randn(4, 3), modes=["train"])
    wrong[1].momentum, right[1].momentum = 1.0, 1.0  # type: ignore[assignment]
    assert verify(right, wrong, torch.randn(4, 3), modes=["train"]) == 0.0


MODEL = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1, MODEL, torch.ones(2, 3)), {}, PruningTypeError, r"reference must be a torch\.nn\.Module, not int"),
        ((MODEL, None, torch.ones(2, 3)), {}, PruningTypeError, r"candidate must be a torch\.nn\.Module, not NoneType"),
        ((MODEL, nn.Linear(3, 3, device="meta"), torch.ones(2, 3)), {}, PruningValueError, "candidate is on the meta device"),
        ((MODEL, MODEL, ()), {}, InputError, r"do not fit Linear\.forward\(input: .*missing a required argument: 'input'"),
        ((MODEL, MODEL, torch.ones(2, 3), 5), {}, InputError, "example_kwargs must be a dict of keyword inputs, not int"),
        ((MODEL, MODEL, torch.ones(2, 4)), {}, InputError, r"the reference itself fails in eval mode on .* \(\(2, 4\),\)"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"modes": "eval"}, PruningValueError, "modes must be .* not 'eval'"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"modes": ()}, PruningValueError, r"modes must be .* not \(\)"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"modes": ("test",)}, PruningValueError, "modes must be"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"precision": "half"}, PruningValueError, 'precision must be "double" or "own"'),
        ((MODEL, MODEL, torch.ones(2, 3)), {"tolerance": -1}, PruningValueError, "tolerance must be at least 0, not -1"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"tolerance": math.nan}, PruningValueError, "tolerance must be at least 0, not nan"),
        ((MODEL, MODEL, torch.ones(2, 3)), {"tolerance": "1"}, PruningTypeError, "tolerance must be a number, not str"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        verify(*arguments, **options)


def test_error_is_an_assertion_error_of_fxprune() -> None:
    with pytest.raises(AssertionError) as caught:
        compare(lambda x: x, lambda x: x + 1, torch.randn(2, 3))
    assert isinstance(caught.value, fxprune.FxpruneError)
    assert caught.value.__cause__ is None


def test_kept_positions_select_along_every_dimension() -> None:
    tensor, rows = torch.arange(12).view(3, 4), torch.tensor([0, 2])
    assert select(tensor, (rows, torch.tensor([3]))).tolist() == [[3], [11]]  # type: ignore[union-attr]
    assert select(tensor, None) is tensor
    assert select(tensor, (rows,)) is None
    assert select(tensor, (None, torch.tensor([4]))) is None


def test_values_of_nodes_are_compared_part_by_part() -> None:
    a, b, kept = torch.randn(2, 4), torch.randn(3), (None, torch.tensor([1, 3]))
    assert node_error((a, [b]), (a[:, [1, 3]], [b]), (kept, [(None,)])) == 0.0
    assert node_error((a, b), (a[:, [1, 2]], b), (kept, (None,)))
    assert node_error({"a": a}, {"a": a + 1}, None)
    assert node_error(a, a[:1], None) is None
    assert node_error((a,), (a, a), None) is None
    assert node_error(3, 4, None) is None
    assert relative_error(torch.ones(0), torch.ones(0)) == 0.0


def test_leaves_are_named_for_people() -> None:
    value = {"a": [1, (2,)], "b": Output(torch.ones(1), {"c": None})}
    assert [name for name, _ in named_leaves(value)] == ["output['a'][0]", "output['a'][1][0]", "output['b'].logits"] + [
        "output['b'].rest['c']"
    ]
