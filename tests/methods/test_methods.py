"""The methods on graphs: what they return and record, users' own methods, tied parameters, and what is refused."""

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import prune as torch_prune

import fxprune
from fxprune.testing import check_graph
from fxprune.torch_internals.versions import VERSION
from tests.kinds import KINDS, readable


class Net(nn.Module):
    """Has next to its layers what cannot be pruned: buffers, whole numbers, a parameter whose new name is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.clash = nn.Linear(3, 3)
        self.clash.register_buffer("weight_mask", torch.ones(3, 3))
        self.counts = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.clash(self.fc(y)) + self.counts


def inputs() -> tuple[Tensor, ...]:
    return (torch.randn((2, 2, 5, 5), generator=torch.Generator().manual_seed(1)),)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@functools.cache
def _captured() -> fx.GraphModule:
    return fxprune.capture(build(), inputs(), frontend="trace")


def captured() -> fx.GraphModule:
    return copy.deepcopy(_captured())


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything of a graph that a refused call must leave alone."""

    text: str
    nodes: str
    table: str
    layout: list[tuple[str, type]]
    identities: dict[str, int]
    values: dict[str, Tensor]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> "Snapshot":
        return cls(
            gm.code,
            str(gm.graph),
            str(fxprune.summary(gm)),
            [(name, type(module)) for name, module in gm.named_modules()],
            {name: id(p) for name, p in gm.named_parameters(remove_duplicate=False)},
            {name: tensor.clone() for name, tensor in gm.state_dict().items()},
        )

    def assert_still_of(self, gm: fx.GraphModule) -> None:
        now = Snapshot.of(gm)
        for field in ("text", "nodes", "table", "layout", "identities"):
            assert getattr(now, field) == getattr(self, field)
        assert list(now.values) == list(self.values)
        for name, value in self.values.items():
            assert now.values[name].dtype == value.dtype
            assert torch.equal(now.values[name], value), name
        check_graph(gm)


class Halver(fxprune.BasePruningMethod):
    """A user's method: takes away every second element."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


class TorchHalver(torch_prune.BasePruningMethod):
    """The same for torch."""

    PRUNING_TYPE = "unstructured"
    compute_mask = Halver.compute_mask


class FirstChannels(fxprune.BasePruningMethod):
    """A user's structured method with arguments of its own."""

    PRUNING_TYPE = "structured"

    def __init__(self, number: int, dim: int = 0) -> None:
        self.number = number
        self.dim = dim

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        mask = default_mask.clone()
        mask.narrow(self.dim, 0, min(self.number, mask.shape[self.dim])).zero_()
        return mask


class TorchFirstChannels(torch_prune.BasePruningMethod):
    """The same for torch."""

    PRUNING_TYPE = "structured"
    __init__ = FirstChannels.__init__
    compute_mask = FirstChannels.compute_mask


class Careless(fxprune.BasePruningMethod):
    """Writes into what it was given, then fails."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        default_mask.zero_()
        raise self.error


class Untyped(fxprune.BasePruningMethod):
    """Forgets its PRUNING_TYPE."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return default_mask


class Misshapen(fxprune.BasePruningMethod):
    """Returns a mask of a shape of its own."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return torch.ones(2)


class Maskless(fxprune.BasePruningMethod):
    """Returns no mask."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Any:
        return None


W = "conv.weight"
Model = Any
Function = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A call that is refused: on a graph, and on a module where torch refuses the same with a check of its own."""

    name: str
    on_graph: Function
    error: type[Exception]
    message: str
    on_module: Function | None = None


def _local(name: str, function: str, arguments: dict[str, Any], error: type[Exception], message: str) -> Refusal:
    """A refused call on ``conv.weight`` of a function that both libraries have."""
    return Refusal(
        name,
        lambda gm: getattr(fxprune, function)(gm, W, **arguments),
        error,
        message,
        lambda m: getattr(torch_prune, function)(m.conv, "weight", **arguments),
    )


def _global(name: str, error: type[Exception], message: str, *args: Any, torch_args: Any = None, **kwargs: Any) -> Refusal:
    """A refused call of ``global_unstructured``."""
    on_module = None
    if torch_args is not None:
        on_module = lambda m: torch_prune.global_unstructured(*torch_args(m), **kwargs)  # noqa: E731
    return Refusal(name, lambda gm: fxprune.global_unstructured(gm, *args, **kwargs), error, message, on_module)


L1, TORCH_L1 = fxprune.L1Unstructured, torch_prune.L1Unstructured
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "unknown_name",
        lambda gm: fxprune.l1_unstructured(gm, "conv.wieght", 0.5),
        AttributeError,
        r"no parameter named 'conv\.wieght'; close to it are conv\.weight.* \(see named_parameters\(\)\)",
        lambda m: torch_prune.l1_unstructured(m.conv, "wieght", 0.5),
    ),
    Refusal(
        "unknown_name_like_no_other",
        lambda gm: fxprune.identity(gm, "zzz"),
        AttributeError,
        r"no parameter named 'zzz'; it has 9 parameters",
        lambda m: torch_prune.identity(m, "zzz"),
    ),
    Refusal(
        "unknown_module",
        lambda gm: fxprune.identity(gm, "encoder.conv.weight"),
        AttributeError,
        r"no parameter named 'encoder\.conv\.weight'; close to it are conv\.weight",
    ),
    Refusal(
        "name_of_a_module",
        lambda gm: fxprune.identity(gm, "conv"),
        AttributeError,
        r"no parameter named 'conv'",
    ),
    Refusal(
        "name_that_is_no_string",
        lambda gm: fxprune.identity(gm, 3),  # type: ignore[arg-type]
        Exception,
        r"no parameter named 3",
    ),
    Refusal(
        "name_that_is_a_list",
        lambda gm: fxprune.identity(gm, [W]),  # type: ignore[arg-type]
        Exception,
        r"no parameter named \['conv\.weight'\]",
    ),
    Refusal(
        "buffer",
        lambda gm: fxprune.l1_unstructured(gm, "norm.running_mean", 0.5),
        AttributeError,
        r"no parameter named 'norm\.running_mean': that is a buffer; only parameters can be pruned",
    ),
    _local(
        "share_above_one",
        "l1_unstructured",
        {"amount": 1.5},
        ValueError,
        r"parameter 'conv\.weight' of shape \(4, 2, 3, 3\) with L1Unstructured: .*range \[0, 1\]",
    ),
    _local("share_below_zero", "random_unstructured", {"amount": -0.1}, ValueError, r"RandomUnstructured: .*range \[0, 1\]"),
    _local("number_below_zero", "l1_unstructured", {"amount": -1}, ValueError, r"or a non-negative integer"),
    _local(
        "number_too_large",
        "l1_unstructured",
        {"amount": 73},
        ValueError,
        r"parameter 'conv\.weight'.*amount=73 should be smaller than the number of parameters",
    ),
    _local("too_many_channels", "random_structured", {"amount": 5, "dim": 0}, ValueError, r"amount=5 should be smaller than"),
    _local("share_not_a_number", "l1_unstructured", {"amount": float("nan")}, ValueError, r"NaN"),
    _local("amount_of_wrong_type", "l1_unstructured", {"amount": "half"}, TypeError, r"Invalid type for amount: half"),
    _local("amount_none", "ln_structured", {"amount": None, "n": 2, "dim": 0}, TypeError, r"Invalid type for amount: None"),
    _local(
        "mask_of_wrong_shape",
        "custom_from_mask",
        {"mask": torch.ones(4, 2, 3)},
        AssertionError,
        r"parameter 'conv\.weight' of shape \(4, 2, 3, 3\) with CustomFromMask: .*\[4, 2, 3\]",
    ),
    _local("mask_of_wrong_type", "custom_from_mask", {"mask": [1.0]}, AttributeError, r"conv\.weight.* a tensor, not list"),
    _local("mask_none", "custom_from_mask", {"mask": None}, AttributeError, r"conv\.weight.* a tensor, not NoneType"),
    Refusal(
        "complex_mask",
        lambda gm: fxprune.custom_from_mask(gm, W, torch.full((4, 2, 3, 3), 1j)),
        TypeError,
        r"conv\.weight.*CustomFromMask: the mask has complex values, but the parameter is of dtype torch.float32",
    ),
    Refusal(
        "sparse_mask",
        lambda gm: fxprune.custom_from_mask(gm, W, torch.ones(4, 2, 3, 3).to_sparse()),
        TypeError,
        r"conv\.weight.*layout torch.sparse_coo; give it as a dense tensor",
    ),
    Refusal(
        "mask_on_the_meta_device",
        lambda gm: fxprune.custom_from_mask(gm, W, torch.ones(4, 2, 3, 3, device="meta")),
        TypeError,
        r"conv\.weight.* on the meta device, where it has no values",
    ),
    _local(
        "scores_of_wrong_shape",
        "l1_unstructured",
        {"amount": 0.5, "importance_scores": torch.ones(3)},
        AssertionError,
        r"same shape as parameter 'conv\.weight', got \(3,\) vs \(4, 2, 3, 3\)",
    ),
    Refusal(
        "scores_of_wrong_type",
        lambda gm: fxprune.ln_structured(gm, W, 0.5, 2, 0, importance_scores=[1.0]),  # type: ignore[arg-type]
        TypeError,
        r"importance_scores of parameter 'conv\.weight' must be a tensor, not list",
    ),
    _local("dim_too_large", "random_structured", {"amount": 0.5, "dim": 4}, IndexError, r"with RandomStructured: .*[Ii]ndex"),
    _local("dim_too_small", "random_structured", {"amount": 0.5, "dim": -5}, IndexError, r"with RandomStructured: .*[Ii]ndex"),
    _local(
        "dim_of_norm_too_large", "ln_structured", {"amount": 1, "n": 2, "dim": 4}, IndexError, r"with LnStructured: .*[Ii]ndex"
    ),
    _local(
        "dim_of_norm_too_small", "ln_structured", {"amount": 1, "n": 2, "dim": -5}, IndexError, r"with LnStructured: .*[Ii]ndex"
    ),
    _local("dim_of_wrong_type", "ln_structured", {"amount": 1, "n": 2, "dim": 0.5}, TypeError, r"parameter 'conv\.weight'"),
    _local(
        "norm_that_is_none",
        "ln_structured",
        {"amount": 1, "n": "least", "dim": 0},
        TypeError if VERSION >= (2, 14) else RuntimeError,
        r"least|'ord' must be Number",
    ),
    Refusal(
        "norm_of_too_many_dims",
        lambda gm: fxprune.ln_structured(gm, W, 1, "nuc", 0),
        RuntimeError,
        r"parameter 'conv\.weight' of shape \(4, 2, 3, 3\) with LnStructured: norm 'nuc' is of matrices, .* 3 dimensions",
    ),
    Refusal(
        "norm_of_too_few_dims",
        lambda gm: fxprune.ln_structured(gm, "fc.weight", 1, "nuc", 0),
        RuntimeError,
        r"parameter 'fc\.weight' .* with LnStructured: norm 'nuc' is of matrices, .* 1 dimensions",
    ),
    Refusal(
        "structured_on_one_dimension",
        lambda gm: fxprune.ln_structured(gm, "conv.bias", 0.5, 2, 0),
        ValueError,
        r"parameter 'conv\.bias' of shape \(4,\) with LnStructured: Structured pruning can only be applied to multidim",
        lambda m: torch_prune.ln_structured(m.conv, "bias", 0.5, 2, 0),
    ),
    Refusal(
        "random_structured_on_one_dimension",
        lambda gm: fxprune.random_structured(gm, "conv.bias", 0.5, 0),
        ValueError,
        r"parameter 'conv\.bias' of shape \(4,\) with RandomStructured: Structured pruning",
        lambda m: torch_prune.random_structured(m.conv, "bias", 0.5, 0),
    ),
    Refusal(
        "whole_numbers",
        lambda gm: fxprune.l1_unstructured(gm, "counts", 0.5),
        TypeError,
        r"'counts' of shape \(3,\) has dtype torch\.int64; only floating-point and complex",
    ),
    Refusal(
        "removing_what_is_not_pruned",
        lambda gm: fxprune.remove(gm, "fc.bias"),
        ValueError,
        r"parameter 'fc\.bias' of shape \(3,\) has to be pruned before pruning can be removed",
        lambda m: torch_prune.remove(m.fc, "bias"),
    ),
    Refusal(
        "removing_what_is_not_there",
        lambda gm: fxprune.remove(gm, "fc.bais"),
        ValueError,
        r"no parameter named 'fc\.bais'; close to it are fc\.bias",
        lambda m: torch_prune.remove(m.fc, "bais"),
    ),
    Refusal(
        "taken_name",
        lambda gm: fxprune.l1_unstructured(gm, "clash.weight", 0.5),
        ValueError,
        r"parameter 'clash\.weight' cannot be masked: the name 'weight_mask' is taken",
    ),
    Refusal(
        "unknown_argument_of_a_method",
        lambda gm: FirstChannels.apply(gm, W, nubmer=1),
        TypeError,
        r"parameter 'conv\.weight'.*with FirstChannels: .*unexpected keyword argument 'nubmer'",
        lambda m: TorchFirstChannels.apply(m.conv, "weight", nubmer=1),
    ),
    Refusal(
        "missing_argument_of_a_method",
        lambda gm: FirstChannels.apply(gm, W),
        TypeError,
        r"parameter 'conv\.weight'.*with FirstChannels: .*missing 1 required positional argument: 'number'",
        lambda m: TorchFirstChannels.apply(m.conv, "weight"),
    ),
    Refusal(
        "method_that_is_abstract",
        lambda gm: fxprune.BasePruningMethod.apply(gm, W),
        TypeError,
        r"parameter 'conv\.weight'.*abstract",
        lambda m: torch_prune.BasePruningMethod.apply(m.conv, "weight"),
    ),
    Refusal(
        "method_that_fails",
        lambda gm: Careless.apply(gm, W, OSError("disk full")),
        RuntimeError,
        r"cannot prune parameter 'conv\.weight' of shape \(4, 2, 3, 3\) with Careless: disk full",
    ),
    Refusal(
        "method_that_fails_in_a_known_way",
        lambda gm: Careless.apply(gm, W, IndexError("no such thing")),
        IndexError,
        r"with Careless: no such thing",
    ),
    Refusal("mask_of_a_method_misshapen", lambda gm: Misshapen.apply(gm, W), Exception, r"'conv\.weight'"),
    Refusal("mask_of_a_method_missing", lambda gm: Maskless.apply(gm, W), Exception, r"'conv\.weight'"),
    _global(
        "global_structured",
        TypeError,
        r'only methods of PRUNING_TYPE "unstructured" can prune globally; LnStructured has \'structured\'',
        [W],
        fxprune.LnStructured,
        torch_args=lambda m: ([(m.conv, "weight")], torch_prune.LnStructured),
        amount=0.5,
        n=2,
    ),
    _global("global_untyped", AttributeError, r"PRUNING_TYPE", [W], Untyped),
    _global("global_not_a_method", TypeError, r"cannot prune with l1", [W], "l1", amount=0.5),
    _global("global_no_names", ValueError, r"names is empty", [], L1, torch_args=lambda m: ([], TORCH_L1), amount=0.5),
    _global("global_one_name", TypeError, r"names must be an iterable of parameter names, not str", W, L1, amount=0.5),
    _global(
        "global_number",
        TypeError,
        r"names must be an iterable of parameter names, not int",
        3,
        L1,
        torch_args=lambda m: (3, TORCH_L1),
        amount=0.5,
    ),
    _global(
        "global_unknown_name",
        AttributeError,
        r"no parameter named 'fc\.wieght'; close to it are fc\.weight",
        [W, "fc.wieght"],
        L1,
        torch_args=lambda m: ([(m.conv, "weight"), (m.fc, "wieght")], TORCH_L1),
        amount=0.5,
    ),
    _global("global_whole_numbers", TypeError, r"'counts' .*dtype torch\.int64", [W, "counts"], L1, amount=0.5),
    _global("global_taken_name", ValueError, r"'weight_mask' is taken", [W, "clash.weight"], L1, amount=0.5),
    _global(
        "global_scores_no_dict",
        TypeError,
        r"importance_scores must map parameter names to tensors, not list",
        [W],
        L1,
        [torch.ones(4, 2, 3, 3)],
        torch_args=lambda m: ([(m.conv, "weight")], TORCH_L1, [torch.ones(4, 2, 3, 3)]),
        amount=0.5,
    ),
    _global(
        "global_scores_of_wrong_shape",
        AssertionError,
        r"same shape as parameter 'conv\.weight', got \(2,\) vs \(4, 2, 3, 3\)",
        [W],
        L1,
        {W: torch.ones(2)},
        amount=0.5,
    ),
    _global("global_scores_of_wrong_type", TypeError, r"must be a tensor, not float", [W], L1, {W: 1.0}, amount=0.5),
    _global(
        "global_scores_of_another", ValueError, r"'fc\.bias', which is not among", [W], L1, {"fc.bias": torch.ones(3)}, amount=1
    ),
    _global(
        "global_unknown_argument",
        TypeError,
        r"cannot prune with L1Unstructured: .*unexpected keyword argument 'amout'",
        [W],
        L1,
        torch_args=lambda m: ([(m.conv, "weight")], TORCH_L1),
        amout=0.5,
    ),
    _global(
        "global_missing_argument",
        TypeError,
        r"cannot prune with L1Unstructured: .*missing 1 required positional argument: 'amount'",
        [W],
        L1,
        torch_args=lambda m: ([(m.conv, "weight")], TORCH_L1),
    ),
    _global(
        "global_too_many",
        ValueError,
        r"cannot prune 2 parameters \(conv\.weight, fc\.weight\) with L1Unstructured: amount=500 should be smaller",
        [W, "fc.weight"],
        L1,
        torch_args=lambda m: ([(m.conv, "weight"), (m.fc, "weight")], TORCH_L1),
        amount=500,
    ),
    Refusal(
        "given_mask_of_wrong_shape",
        lambda gm: fxprune.mask(gm, {"fc.weight": torch.ones(3, 4), W: torch.ones(3)}),
        AssertionError,
        r"the mask of 'conv\.weight' must have the parameter's shape \(4, 2, 3, 3\), got \(3,\)",
    ),
    Refusal(
        "given_mask_of_wrong_type",
        lambda gm: fxprune.mask(gm, {"fc.weight": torch.ones(3, 4), W: 0.5}),  # type: ignore[dict-item]
        TypeError,
        r"the mask of 'conv\.weight' must be a tensor, not float",
    ),
    Refusal(
        "given_mask_of_unknown_name",
        lambda gm: fxprune.mask(gm, {"fc.weight": torch.ones(3, 4), "fc.bais": torch.ones(3)}),
        AttributeError,
        r"no parameter named 'fc\.bais'; close to it are fc\.bias",
    ),
    Refusal(
        "given_mask_of_whole_numbers",
        lambda gm: fxprune.mask(gm, {"counts": torch.ones(3)}),
        TypeError,
        r"'counts' .*dtype torch\.int64",
    ),
    Refusal(
        "given_mask_for_a_taken_name",
        lambda gm: fxprune.mask(gm, {"fc.weight": torch.ones(3, 4), "clash.weight": torch.ones(3, 3)}),
        ValueError,
        r"'weight_mask' is taken",
    ),
)


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_refused_call_says_why_and_leaves_everything_as_it_was(refusal: Refusal, masked: bool) -> None:
    gm = captured()
    if masked:
        for name in (W, "norm.weight", "fc.weight"):
            fxprune.l1_unstructured(gm, name, 0.25)
    before = Snapshot.of(gm)
    with pytest.raises(fxprune.FxpruneError, match=f"(?s){refusal.message}") as caught:
        refusal.on_graph(gm)
    before.assert_still_of(gm)
    assert fxprune.is_pruned(gm) is masked
    assert isinstance(caught.value, refusal.error)


@pytest.mark.parametrize("refusal", [r for r in REFUSALS if r.on_module is not None], ids=lambda refusal: refusal.name)
def test_refused_call_raises_the_builtin_type_that_torch_raises(refusal: Refusal) -> None:
    assert refusal.on_module is not None
    with pytest.raises(refusal.error):
        refusal.on_module(build())


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("identity", {}),
        ("random_unstructured", {"amount": 0.5}),
        ("l1_unstructured", {"amount": 0.5}),
        ("random_structured", {"amount": 0.5, "dim": 0}),
        ("ln_structured", {"amount": 0.5, "n": 2, "dim": 0}),
        ("custom_from_mask", {"mask": torch.ones(4, 2, 3, 3)}),
        ("remove", {}),
    ],
)
def test_argument_that_a_function_does_not_know_is_refused(function: str, arguments: dict[str, Any]) -> None:
    gm = captured()
    before = Snapshot.of(gm)
    with pytest.raises(TypeError, match="unexpected keyword argument 'amout'"):
        getattr(fxprune, function)(gm, W, **arguments, amout=0.5)
    before.assert_still_of(gm)


MASK = torch.ones(4, 2, 3, 3)
ON_PLAIN_MODULES: dict[str, Function] = {
    "identity": lambda m: fxprune.identity(m, W),
    "random_unstructured": lambda m: fxprune.random_unstructured(m, W, 0.5),
    "l1_unstructured": lambda m: fxprune.l1_unstructured(m, W, 0.5),
    "random_structured": lambda m: fxprune.random_structured(m, W, 0.5, 0),
    "ln_structured": lambda m: fxprune.ln_structured(m, W, 0.5, 2, 0),
    "custom_from_mask": lambda m: fxprune.custom_from_mask(m, W, MASK),
    "global_unstructured": lambda m: fxprune.global_unstructured(m, [W], L1, amount=0.5),
    "remove": lambda m: fxprune.remove(m, W),
    "is_pruned": lambda m: fxprune.is_pruned(m),
    "apply": lambda m: Halver.apply(m, W),
    "apply_with_attribute": lambda m: fxprune.L1Unstructured.apply(m.conv, "weight", 0.5),
    "mask": lambda m: fxprune.mask(m, {W: MASK}),
    "finalize": lambda m: fxprune.finalize(m),
    "summary": lambda m: fxprune.summary(m),
}


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("function", ON_PLAIN_MODULES)
def test_module_in_place_of_a_graph_is_refused_and_left_as_it_was(function: str, hooked: bool) -> None:
    model = build()
    if hooked:
        torch_prune.l1_unstructured(model.conv, "weight", 0.5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fxprune.FxpruneError, match=r"expected a torch\.fx\.GraphModule, got \w+; .*fxprune\.capture") as caught:
        ON_PLAIN_MODULES[function](model)
    assert isinstance(caught.value, TypeError)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_name_under_which_a_masked_parameter_is_stored_is_not_a_name_to_prune() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, W, 0.5)
    before = Snapshot.of(gm)
    with pytest.raises(fxprune.FxpruneError, match=r"'conv\.weight_orig'.*conv\.weight"):
        fxprune.l1_unstructured(gm, "conv.weight_orig", 0.5)
    before.assert_still_of(gm)


def test_close_names_are_suggested_as_they_are_to_be_given_also_when_they_are_masked() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, W, 0.5)
    with pytest.raises(fxprune.PruningError) as caught:
        fxprune.l1_unstructured(gm, "conv.wieght", 0.5)
    assert re.search(r"close to it are conv\.weight\b(?!_)", str(caught.value))


def test_mask_of_before_survives_a_method_that_fails_after_writing_into_it() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, W, 0.5)
    mask = gm.get_buffer("conv.weight_mask").clone()
    output = gm(*inputs())
    with pytest.raises(fxprune.PruningError):
        Careless.apply(gm, W, ValueError("no"))
    assert torch.equal(gm.get_buffer("conv.weight_mask"), mask)
    assert torch.equal(gm(*inputs()), output)
    fxprune.l1_unstructured(gm, W, 0.5)
    assert gm.get_buffer("conv.weight_mask").sum() == 18


def test_error_keeps_its_cause() -> None:
    cause = OSError("disk full")
    with pytest.raises(fxprune.PruningError) as caught:
        Careless.apply(captured(), W, cause)
    assert caught.value.__cause__ is cause


OWN_METHODS: dict[str, tuple[Function, Function]] = {
    "unstructured": (lambda gm: Halver.apply(gm, W), lambda m: TorchHalver.apply(m.conv, "weight")),
    "structured": (lambda gm: FirstChannels.apply(gm, W, 1), lambda m: TorchFirstChannels.apply(m.conv, "weight", 1)),
    "structured_by_keyword": (
        lambda gm: FirstChannels.apply(gm, W, number=1, dim=1),
        lambda m: TorchFirstChannels.apply(m.conv, "weight", number=1, dim=1),
    ),
    "scored": (
        lambda gm: Halver.apply(gm, W, importance_scores=MASK),
        lambda m: TorchHalver.apply(m.conv, "weight", importance_scores=MASK),
    ),
    "library": (
        lambda gm: fxprune.l1_unstructured(gm, W, 0.5),
        lambda m: torch_prune.l1_unstructured(m.conv, "weight", 0.5),
    ),
}


@pytest.mark.parametrize("second", OWN_METHODS)
@pytest.mark.parametrize("first", OWN_METHODS)
def test_users_own_method_gives_the_masks_of_torch_alone_and_iterated(first: str, second: str) -> None:
    gm, model = captured(), build()
    for name in (first, second, first):
        on_graph, on_module = OWN_METHODS[name]
        on_graph(gm)
        on_module(model)
        expected: Tensor = model.conv.weight_mask  # type: ignore[assignment, union-attr]
        torch.testing.assert_close(gm.get_buffer("conv.weight_mask").float(), expected, rtol=0, atol=0)
        torch.testing.assert_close(gm(*inputs()), model(*inputs()))


@pytest.mark.parametrize("method", [Halver, TorchHalver, torch_prune.RandomUnstructured], ids=lambda m: m.__name__)
def test_any_unstructured_method_can_prune_globally_one_written_for_torch_too(method: Any) -> None:
    gm, model = captured(), build()
    arguments: dict[str, Any] = {"amount": 0.5} if method is torch_prune.RandomUnstructured else {}
    torch.manual_seed(2)
    fxprune.global_unstructured(gm, (name for name in (W, "fc.weight")), method, **arguments)
    torch.manual_seed(2)
    theirs = TorchHalver if method is Halver else method
    torch_prune.global_unstructured([(model.conv, "weight"), (model.fc, "weight")], theirs, **arguments)
    for name in ("conv.weight_mask", "fc.weight_mask"):
        torch.testing.assert_close(gm.get_buffer(name).float(), model.get_buffer(name), rtol=0, atol=0)


def test_apply_returns_the_method_and_a_container_of_all_methods_from_the_second_on() -> None:
    gm = captured()
    first = fxprune.L1Unstructured.apply(gm, W, amount=0.5)
    assert type(first) is fxprune.L1Unstructured
    assert first.amount == 0.5
    second = fxprune.LnStructured.apply(gm, W, 0.5, 2, 0)
    third = Halver.apply(gm, W)
    for container, length in ((second, 2), (third, 3)):
        assert isinstance(container, fxprune.PruningContainer)
        assert len(container) == length
    assert [type(method) for method in third] == [fxprune.L1Unstructured, fxprune.LnStructured, Halver]
    assert (third[1].n, third[1].dim) == (2, 0)


def test_container_takes_a_removed_parameter_for_a_new_one() -> None:
    gm = captured()
    fxprune.l1_unstructured(gm, W, 0.5)
    fxprune.remove(gm, W)
    assert type(Halver.apply(gm, W)) is Halver
    fxprune.finalize(gm)
    assert type(Halver.apply(gm, W)) is Halver


def test_method_gives_the_masked_parameter_and_its_gradient() -> None:
    gm = captured()
    method = fxprune.L1Unstructured.apply(gm, W, amount=0.5)
    orig, mask = gm.get_parameter("conv.weight_orig"), gm.get_buffer("conv.weight_mask")
    masked = method.apply_mask(gm)
    torch.testing.assert_close(masked, orig * mask, rtol=0, atol=0)
    masked.sum().backward()
    assert orig.grad is not None
    torch.testing.assert_close(orig.grad, mask.float(), rtol=0, atol=0)


@pytest.mark.parametrize("iterated", [False, True])
def test_method_can_be_removed_by_what_apply_returned(iterated: bool) -> None:
    gm = captured()
    before = gm.code
    method = fxprune.L1Unstructured.apply(gm, W, amount=0.5)
    if iterated:
        method = fxprune.L1Unstructured.apply(gm, W, amount=0.5)
    expected = method.apply_mask(gm).detach()
    method.remove(gm)
    assert gm.code == before
    assert torch.equal(gm.get_parameter(W), expected)
    with pytest.raises(fxprune.FxpruneError, match=r"'conv\.weight' is not pruned by this"):
        method.apply_mask(gm)
    with pytest.raises(AssertionError, match=r"'conv\.weight' is not pruned by this"):
        method.remove(gm)


def test_method_that_was_not_applied_has_no_mask() -> None:
    with pytest.raises(AssertionError, match="is not pruned by this L1Unstructured") as caught:
        fxprune.L1Unstructured(0.5).apply_mask(captured())
    assert isinstance(caught.value, fxprune.FxpruneError)


def test_method_is_no_hook() -> None:
    model = build()
    method = fxprune.L1Unstructured.apply(captured(), W, amount=0.5)
    assert isinstance(model.conv, nn.Module)
    model.conv.register_forward_pre_hook(method)
    with pytest.raises(fxprune.FxpruneError, match="a pruning method on a graph is not a hook"):
        model(*inputs())


def test_method_prunes_a_tensor_without_a_graph_as_in_torch() -> None:
    t = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    default_mask = (t > -0.5).float()
    for ours, theirs in (
        (fxprune.L1Unstructured(0.4), torch_prune.L1Unstructured(0.4)),
        (fxprune.LnStructured(2, 2, 1), torch_prune.LnStructured(2, 2, 1)),
        (Halver(), TorchHalver()),
    ):
        torch.testing.assert_close(ours.prune(t), theirs.prune(t), rtol=0, atol=0)
        expected = theirs.prune(t, default_mask=default_mask, importance_scores=-t)
        torch.testing.assert_close(ours.prune(t, default_mask=default_mask, importance_scores=-t), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n in fxprune.__all__ if isinstance(getattr(torch_prune, n, None), type)])
def test_every_class_is_one_of_torchs(name: str) -> None:
    assert issubclass(getattr(fxprune, name), getattr(torch_prune, name))


def test_every_name_of_torchs_module_is_there() -> None:
    public = [n for n, value in vars(torch_prune).items() if getattr(value, "__module__", None) == torch_prune.__name__]
    missing = [n for n in public if not n.startswith("_") and n not in fxprune.__all__]
    assert missing == []


BINARY: dict[str, Callable[[fx.GraphModule], object]] = {
    "identity": lambda gm: fxprune.identity(gm, W),
    "l1": lambda gm: fxprune.l1_unstructured(gm, W, 0.5),
    "random_structured": lambda gm: fxprune.random_structured(gm, W, 0.5, 0),
    "custom": lambda gm: fxprune.custom_from_mask(gm, W, MASK.double()),
    "custom_bool": lambda gm: fxprune.custom_from_mask(gm, W, MASK.bool()),
    "custom_int": lambda gm: fxprune.custom_from_mask(gm, W, MASK.long()),
    "global": lambda gm: fxprune.global_unstructured(gm, [W, "fc.weight"], L1, amount=0.5),
    "given": lambda gm: fxprune.mask(gm, {W: MASK}),
    "given_bool": lambda gm: fxprune.mask(gm, {W: MASK.bool()}),
}


@pytest.mark.parametrize("prune", BINARY.values(), ids=BINARY.keys())
def test_mask_of_zeros_and_ones_takes_one_byte_an_element(prune: Callable[[fx.GraphModule], object]) -> None:
    gm = captured()
    for _ in range(2):
        prune(gm)
        mask = gm.get_buffer("conv.weight_mask")
        assert mask.dtype == torch.int8
        assert mask.untyped_storage().nbytes() == mask.numel() == 72


@pytest.mark.parametrize(
    "prune", [fxprune.custom_from_mask, lambda gm, n, m: fxprune.mask(gm, {n: m})], ids=["custom", "given"]
)
def test_mask_of_other_values_keeps_the_parameters_dtype_and_values(prune: Any) -> None:
    gm = captured()
    graded = torch.linspace(-1, 2, 72).view(4, 2, 3, 3)
    prune(gm, W, graded)
    mask = gm.get_buffer("conv.weight_mask")
    assert mask.dtype == torch.float32
    assert torch.equal(mask, graded)
    fxprune.custom_from_mask(gm, W, torch.zeros(4, 2, 3, 3))
    assert gm.get_buffer("conv.weight_mask").dtype == torch.int8


@pytest.mark.parametrize(
    "prune", [fxprune.custom_from_mask, lambda gm, n, m: fxprune.mask(gm, {n: m})], ids=["custom", "given"]
)
@pytest.mark.parametrize("mine", [MASK.byte(), MASK.clone(), MASK / 2, MASK.bool()], ids=["bytes", "floats", "halves", "bools"])
def test_users_mask_is_copied(prune: Any, mine: Tensor) -> None:
    gm = captured()
    mine = mine.clone()
    prune(gm, W, mine)
    mine.zero_()
    assert gm.get_buffer("conv.weight_mask").all()


def test_scores_and_masks_that_require_gradients_leave_no_trace_of_them() -> None:
    gm = captured()
    scores = MASK.clone().requires_grad_()
    fxprune.l1_unstructured(gm, W, 0.5, importance_scores=scores)
    fxprune.custom_from_mask(gm, W, (MASK * 0.5).requires_grad_())
    assert not gm.get_buffer("conv.weight_mask").requires_grad
    gm(*inputs()).sum().backward()
    assert scores.grad is None


def test_removing_one_of_two_masks_of_a_module_leaves_the_other() -> None:
    gm = captured()
    before = gm.code
    fxprune.l1_unstructured(gm, W, 0.5)
    fxprune.l1_unstructured(gm, "conv.bias", 0.5)
    output = gm(*inputs())
    expected = gm.get_parameter("conv.weight_orig") * gm.get_buffer("conv.weight_mask")

    fxprune.remove(gm, W)
    check_graph(gm)
    assert {k for k in gm.state_dict() if k.startswith("conv.")} == {W, "conv.bias_orig", "conv.bias_mask"}
    assert torch.equal(gm.get_parameter(W), expected)
    assert torch.equal(gm(*inputs()), output)
    assert fxprune.is_pruned(gm)

    fxprune.remove(gm, "conv.bias")
    assert gm.code == before
    assert torch.equal(gm(*inputs()), output)
    assert not fxprune.is_pruned(gm)


# Tied parameters: one object, several names.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(torch.tanh(self.embed(tokens)))


NAMES = ("embed.weight", "head.weight")


def captured_tied(frontend: Any = "trace") -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(Tied(), torch.arange(6).view(2, 3), frontend=frontend)


def assert_tied(gm: fx.GraphModule) -> None:
    assert gm.get_parameter("embed.weight_orig") is gm.get_parameter("head.weight_orig")
    assert gm.get_buffer("embed.weight_mask") is gm.get_buffer("head.weight_mask")
    assert set(gm.state_dict()) == {"embed.weight_orig", "embed.weight_mask", "head.weight_orig", "head.weight_mask"}
    check_graph(gm)


@pytest.mark.parametrize("frontend", ["trace", "export"])
@pytest.mark.parametrize("by", NAMES)
def test_tied_parameter_has_one_mask_under_all_of_its_names(by: str, frontend: str) -> None:
    gm = captured_tied(frontend)
    before, tokens = gm.code, torch.arange(6).view(2, 3)
    parameter = gm.get_parameter("embed.weight")
    fxprune.l1_unstructured(gm, by, 0.5)
    assert_tied(gm)
    assert readable(gm).count(" * ") == 1
    mask = gm.get_buffer("embed.weight_mask")
    dense = Tied()
    with torch.no_grad():
        dense.embed.weight.copy_(parameter * mask)
    torch.testing.assert_close(gm(tokens), dense(tokens))

    fxprune.remove(gm, by)
    assert gm.code == before
    assert gm.get_parameter("embed.weight") is gm.get_parameter("head.weight") is parameter
    torch.testing.assert_close(gm(tokens), dense(tokens))


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("third", NAMES)
def test_tied_parameter_is_the_same_one_whichever_of_its_names_is_used(first: str, second: str, third: str) -> None:
    gm = captured_tied()
    fxprune.l1_unstructured(gm, first, 4)
    container = fxprune.RandomStructured.apply(gm, second, 0.5, 0)
    assert [type(method) for method in container] == [fxprune.L1Unstructured, fxprune.RandomStructured]
    fxprune.global_unstructured(gm, [third], L1, {first: torch.rand(7, 4)}, amount=2)
    assert_tied(gm)
    (row,) = fxprune.summary(gm).rows
    assert (row.name, row.method) == ("embed.weight = head.weight", "L1Unstructured, RandomStructured, CustomFromMask")
    orig, mask = gm.get_parameter("head.weight_orig"), gm.get_buffer("head.weight_mask")
    torch.testing.assert_close(container.apply_mask(gm), orig * mask, rtol=0, atol=0)
    fxprune.remove(gm, second)
    assert not fxprune.is_pruned(gm)
    assert type(Halver.apply(gm, first)) is Halver


def test_tied_parameter_counts_once_in_global_pruning() -> None:
    gm = captured_tied()
    fxprune.global_unstructured(gm, NAMES, L1, amount=10)
    assert_tied(gm)
    assert int(gm.get_buffer("head.weight_mask").sum()) == 18


def test_parameter_that_the_graph_does_not_read_can_be_masked_too() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(3, 3)
            self.idle = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    gm = fxprune.capture(Idle(), torch.ones(1, 3))
    before = gm.code
    fxprune.l1_unstructured(gm, "idle.weight", 0.5)
    check_graph(gm)
    assert gm.code == before
    assert {"idle.weight_orig", "idle.weight_mask"} <= set(gm.state_dict())
    expected = gm.get_parameter("idle.weight_orig") * gm.get_buffer("idle.weight_mask")
    fxprune.finalize(gm)
    assert gm.code == before
    assert torch.equal(gm.get_parameter("idle.weight"), expected)


@pytest.mark.parametrize("function", ["l1_unstructured", "random_unstructured"])
def test_module_without_gradients_is_pruned_like_any_other(function: str) -> None:
    kind = KINDS["linear"]
    model = kind.build().requires_grad_(False)
    gm = fxprune.capture(model, kind.inputs())
    getattr(fxprune, function)(gm, "layer.weight", 0.5)
    assert not gm.get_parameter("layer.weight_orig").requires_grad
    fxprune.finalize(gm)
    assert int(gm.get_parameter("layer.weight").count_nonzero()) == 10


def test_model_that_the_graph_was_captured_from_keeps_its_structure() -> None:
    model = build()
    before, conv = list(model.state_dict()), model.conv
    gm = fxprune.capture(model, inputs())
    for name in (W, "norm.weight", "fc.weight"):
        fxprune.l1_unstructured(gm, name, 0.5)
    assert list(model.state_dict()) == before
    assert model.conv is conv
    assert not torch_prune.is_pruned(model)
