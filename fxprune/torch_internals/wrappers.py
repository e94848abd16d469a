"""What torch.compile makes of a module."""

from __future__ import annotations

import sys

from torch import nn


def compiled_inside(module: nn.Module) -> nn.Module | None:
    """Return the module inside what ``torch.compile`` makes of a module; None for any other module."""
    loaded = sys.modules.get("torch._dynamo.eval_frame")  # it takes long to import, and nothing is compiled without it
    return module._modules["_orig_mod"] if loaded is not None and isinstance(module, loaded.OptimizedModule) else None
