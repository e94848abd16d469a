"""Runs models without chance: the result of a random operator depends on its arguments alone.

Two graphs of the same function draw different numbers if their shapes differ, as the n-th number of a generator meets another
element. So nothing is drawn: dropout keeps everything, with its scale; a distribution gives a value from its middle.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.rules.call import bound_arguments
from fxprune.torch_internals.operators import (
    HigherOrderOperator,
    OpOverload,
    TorchDispatchMode,
    arguments_of,
    base_name,
    is_composite,
    returns_of,
)
from fxprune.torch_internals.switches import attention_as_products, no_fast_path
from fxprune.torch_internals.tensors import pytree

aten = torch.ops.aten
Arguments = dict[str, Any]

WIDER: dict[torch.dtype, torch.dtype] = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


@contextlib.contextmanager
def deterministic(training: bool, double: bool) -> Iterator[None]:
    """Run all calls within the context without chance, with ``double`` in double precision whatever dtype the code names.

    Fused attention kernels drop elements inside, and the choice of kernel depends on the shapes. So attention in train mode
    is written out as matrix products.
    """
    with no_fast_path(), attention_as_products() if training else contextlib.nullcontext(), _Deterministic(double):
        yield


class _Deterministic(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.double = double

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            args, kwargs = pytree.tree_map(self._inside, (args, kwargs))
            return func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and is_composite(func):
            with self:  # tensors of inference mode arrive here before composite operators are decomposed
                return func.decompose(*args, **kwargs)
        if self.double and func is not aten.view.dtype:  # it reads the bits
            args, kwargs = pytree.tree_map_only(torch.dtype, lambda dtype: WIDER.get(dtype, dtype), (args, kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags or _drops(func):
            result = _without_chance(func, bound_arguments(func, args, kwargs))
        elif self.double and func is aten._grouped_mm.default:
            result = _grouped_product(**bound_arguments(func, args, kwargs))
        else:
            result = func(*args, **kwargs)
        if self.double and (func is aten.lift_fresh.default or _is_new(func)):
            result = pytree.tree_map_only(Tensor, _as_double, result)
        return result

    def _inside(self, leaf: Any) -> Any:
        """Let the bodies of a control-flow operator run under this mode as well."""
        if not callable(leaf) or isinstance(leaf, Tensor):
            return leaf

        def body(*args: Any, **kwargs: Any) -> Any:
            with self:
                return leaf(*args, **kwargs)

        return body


def _grouped_product(self: Tensor, mat2: Tensor, offs: Tensor | None, bias: Tensor | None, out_dtype: Any) -> Tensor:
    """Return a product for each group, which torch's own kernel does not compute in double precision."""
    if offs is None:
        result = self @ mat2
    else:
        ends = offs.tolist()
        parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if self.dim() == mat2.dim():
            result = torch.stack([self[:, part] @ mat2[part] for part in parts])
        elif self.dim() == 2:
            result = self.new_zeros(len(self), mat2.shape[-1])
            for part, matrix in zip(parts, mat2, strict=True):
                result[part] = self[part] @ matrix
        else:
            result = self.new_zeros(self.shape[1], mat2.shape[-1])
            for part, matrix in zip(parts, self, strict=True):
                result[:, part] = matrix @ mat2[:, part]
    return (result if bias is None else result + bias).to(out_dtype or self.dtype)


def _as_double(tensor: Tensor) -> Tensor:
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype))


def _is_new(func: OpOverload) -> bool:
    """Tell whether the results share no memory with the arguments, so that they can be replaced."""
    return all(result.alias_info is None for result in returns_of(func))


# Fused kernels and recurrent layers, forward and backward, drop elements by a probability of this name.
_DROPPING = ("dropout_p", "dropout")


def _drops(func: OpOverload) -> bool:
    return any(a.name in _DROPPING and str(a.type) == "float" for a in arguments_of(func))


def _without_chance(func: OpOverload, bound: Arguments) -> Any:
    name = base_name(func).removesuffix("_functional").removesuffix("_like").removesuffix("_")
    if "generator" in bound:
        bound["generator"] = None  # a generator of the caller keeps its state
    if name in _WHOLE:
        return _WHOLE[name](func, bound)
    if name in _MIDDLE:
        value = _MIDDLE[name](bound)
        result = func(**bound)  # it has the right shape and dtype in every variant of the operator
        return result.copy_(value) if isinstance(value, Tensor) else result.fill_(value)
    if _drops(func) and name != "_fused_sdp_choice":
        bound.update({key: 0.0 for key in _DROPPING if key in bound})
    return func(**bound)


def _bernoulli(bound: Arguments) -> Any:
    chance: Any = bound["p"] if "p" in bound else bound["self"]
    return chance > 0 if isinstance(chance, Tensor) else float(chance > 0)


def _random(bound: Arguments) -> Any:
    start, stop = bound.get("from", 0), bound.get("to")
    return start if stop is None else (start + stop) // 2


def _normal(bound: Arguments) -> Any:
    return bound["mean"] + bound["std"] * 0.25


def _multinomial(bound: Arguments) -> Tensor:
    weights: Tensor = bound["self"]
    if bound["replacement"]:
        return weights.argmax(-1, keepdim=True).expand(*weights.shape[:-1], bound["num_samples"])
    return torch.sort(weights, dim=-1, descending=True, stable=True).indices[..., : bound["num_samples"]]


_MIDDLE: dict[str, Callable[[Arguments], Any]] = {
    "bernoulli": _bernoulli,
    "rand": lambda _: 0.5,
    "uniform": lambda a: (a["from"] + a["to"]) / 2,
    "randn": lambda _: 0.25,
    "normal": _normal,
    "log_normal": lambda a: math.exp(_normal(a)),
    "cauchy": lambda a: a["median"],
    "exponential": lambda a: math.log(2) / a["lambd"],
    "geometric": lambda _: 1.0,
    "randint": lambda a: (a.get("low", 0) + a["high"]) // 2,
    "random": _random,
    "poisson": lambda a: a["self"].floor(),
    "binomial": lambda a: (a["count"] * a["prob"]).floor(),
    "_standard_gamma": lambda a: a["self"],
    "_sample_dirichlet": lambda a: a["self"] / a["self"].sum(-1, keepdim=True),
    "multinomial": _multinomial,
    "randperm": lambda a: torch.randperm(a["n"], generator=torch.Generator().manual_seed(0)),
}


def _native_dropout(func: OpOverload, bound: Arguments) -> Any:
    result, kept = func(**bound)
    if bound["train"] is not False and 0 < bound["p"] < 1:
        kept.fill_(True)
        result.copy_(bound["input"] / (1 - bound["p"]))
    return result, kept


def _rrelu(func: OpOverload, bound: Arguments) -> Any:
    middle = (bound["lower"] + bound["upper"]) / 2
    return func(**{**bound, "lower": middle, "upper": middle})


_WHOLE: dict[str, Callable[[OpOverload, Arguments], Any]] = {
    "native_dropout": _native_dropout,
    "rrelu_with_noise": _rrelu,
}
