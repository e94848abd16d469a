"""Hooks: those that compute weights become code of the graph, those that change nothing are left out, others are refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

NORMS: list[Callable[..., Any]] = [
    nn.utils.weight_norm,
    nn.utils.spectral_norm,
    lambda m: nn.utils.weight_norm(m, dim=None),  # type: ignore[arg-type]
    lambda m: nn.utils.spectral_norm(m, n_power_iterations=2),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(2, 16, 3, padding=1), nn.ConvTranspose1d(16, 2, 3, padding=1), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.relu(self.a(x))))


def normed(norm: Callable[..., Any], *names: str) -> Net:
    torch.manual_seed(0)
    model = Net().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in names:
            norm(getattr(model, name))
    return model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("frontend", ["auto", "export"])
@pytest.mark.parametrize("training", [False, True])
def test_norms_of_weights_by_hooks(norm: Callable[..., Any], frontend: Any, training: bool) -> None:
    model, x = normed(norm, "a", "b").train(training), torch.randn(2, 2, 20).double()
    before, kinds = dict(vars(model.a)), [type(m) for m in model.modules()]
    gm = fxprune.capture(model, x, frontend=frontend)
    assert dict(vars(model.a)) == before
    assert [type(m) for m in model.modules()] == kinds
    assert list(gm.state_dict()) == list(model.state_dict())
    for mode in (False, True, False):
        state = {name: t.clone() for name, t in model.state_dict().items()}
        expected = model.train(mode)(x)
        after = {name: t.clone() for name, t in model.state_dict().items()}
        model.load_state_dict(state)
        assert torch.allclose(gm.train(mode)(x), expected, rtol=1e-9, atol=1e-9)
        assert all(torch.allclose(t, after[name]) for name, t in gm.state_dict().items())
    small = fxprune.prune(model.eval(), x, 0.5)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


def test_two_norms_on_one_module_and_a_mask() -> None:
    model, x = normed(nn.utils.weight_norm, "a"), torch.randn(2, 2, 20).double()
    nn.utils.weight_norm(model.a, "bias", dim=None)  # type: ignore[arg-type]
    nn.utils.prune.l1_unstructured(model.c, "weight", 0.5)
    gm = fxprune.capture(model, x)
    assert torch.allclose(gm(x), model(x), rtol=1e-9, atol=1e-9)
    assert len(model.a._forward_pre_hooks) == 2


def doubles(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def shifts(module: nn.Module, args: Any) -> Any:
    return (args[0] + 1,)


def nothing(*args: Any) -> None:
    return None


def same(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_(True) if output.is_leaf else output


@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_hooks_that_change_nothing_are_left_out_with_a_warning(frontend: Any) -> None:
    model, x, seen = Net().eval(), torch.randn(2, 2, 20), []

    def records(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output.mean())

    handles = [model.a.register_forward_hook(nothing), model.register_forward_pre_hook(nothing)]
    handles += [model.b.register_forward_hook(same), model.c.register_forward_hook(records)]
    handles += [model.a.register_forward_hook(lambda m, a, k, o: None, with_kwargs=True)]
    with pytest.warns(fxprune.CaptureWarning, match=r"(?s)without 5 hooks.*a \(Conv1d\): forward hook nothing at "):
        gm = fxprune.capture(model, x, frontend=frontend)
    assert torch.equal(gm(x), model(x))
    assert all(type(each) is Tensor and not each.is_meta for each in seen)
    assert len(model.a._forward_hooks) == 2
    for handle in handles:
        handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.capture(model, x, frontend=frontend)


@pytest.mark.parametrize(
    ("register", "hook"),
    [("forward", doubles), ("forward_pre", shifts), ("full_backward", nothing), ("full_backward_pre", nothing)],
)
@pytest.mark.parametrize("path", ["a", ""])
def test_the_error_names_the_line_that_removes_the_hook(register: str, hook: Any, path: str) -> None:
    model, x = Net().eval(), torch.randn(2, 2, 20)
    module = model.get_submodule(path)
    kept = module.register_forward_hook(nothing)
    getattr(module, f"register_{register}_hook")(hook)
    with pytest.raises(fxprune.HookError, match=f"{hook.__name__} at .*test_hooks.py:") as info:
        fxprune.capture(model, x)
    (line,) = [line for line in re.findall("`(del .*?)`", str(info.value)) if f"[{kept.id}]" not in line]
    exec(line, {"model": model})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm = fxprune.capture(model, x)
    assert torch.equal(gm(x), model(x))
