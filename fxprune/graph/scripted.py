"""TorchScript as a layer of a graph: nobody looks into it, and its parameters and buffers are ordinary ones."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import CaptureError
from fxprune.graph.parts import Container
from fxprune.torch_internals.switches import is_watched
from fxprune.torch_internals.tensors import FakeTensor, pytree


class Scripted(Container):
    """Runs TorchScript on its own parameters and buffers, which have the names that they have in the script.

    Those of the original module are shared, the script is not: each call hands it the present tensors and modes.
    """

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        vars(self)["_code"] = _Code(copy.copy(script))  # no submodule
        _mirror(script, self)

    def script(self) -> torch.jit.ScriptModule:
        """Return the script with the present tensors and modes."""
        found: torch.jit.ScriptModule = vars(self)["_code"].script
        for part, scripted in zip(_modules(self), _modules(found), strict=True):
            if scripted.training is not part.training:
                scripted.training = part.training
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None and getattr(scripted, name) is not tensor:
                    setattr(scripted, name, tensor)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the script; buffers to which it assigns other tensors hold those afterwards.

        Raises:
            CaptureError: the inputs are fake tensors, on which a script does not run.
        """
        if any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves((args, kwargs))):
            raise CaptureError("the module is TorchScript, into which nothing looks")
        script = self.script()
        if is_watched():  # fused kernels would not show
            with torch.jit.optimized_execution(False):
                result = script(*args, **kwargs)
        else:
            result = script(*args, **kwargs)
        for part, scripted in zip(_modules(self), _modules(script), strict=True):
            part._buffers.update({name: getattr(scripted, name) for name, held in part._buffers.items() if held is not None})
        return result


def _modules(module: nn.Module) -> list[nn.Module]:
    return [part for _, part in module.named_modules(remove_duplicate=False)]


def _mirror(script: nn.Module, target: nn.Module) -> None:
    """Give ``target`` the tensors of a script, and containers with those of its submodules."""
    target.training = script.training
    for name, tensor in script._parameters.items():
        # A script that was loaded from a file has tensors for parameters.
        kept = tensor if tensor is None or isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, tensor.requires_grad)
        target.register_parameter(name, kept)
    for name, buffer in script._buffers.items():
        target.register_buffer(name, buffer, persistent=name not in script._non_persistent_buffers_set)
    for name, child in script._modules.items():
        target._modules[name] = inside = Container()
        _mirror(child, inside)  # type: ignore[arg-type]


class _Code:
    """A script without tensors that matter, which copies and pickles."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        self.script = script

    def __deepcopy__(self, memo: dict[int, Any]) -> _Code:
        return _Code(copy.copy(self.script))

    def __reduce__(self) -> Any:
        bare, buffer = copy.copy(self.script), io.BytesIO()
        for part in _modules(bare):
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if isinstance(tensor, Tensor):
                    setattr(part, name, torch.empty(0, dtype=tensor.dtype))
        torch.jit.save(bare, buffer)
        return _loaded, (buffer.getvalue(),)


def _loaded(content: bytes) -> _Code:
    return _Code(torch.jit.load(io.BytesIO(content)))
