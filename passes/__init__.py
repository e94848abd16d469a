"""The compiler passes, one file each; imported as ``fxprune.passes``."""

if __name__ != "fxprune.passes":
    raise ImportError("import the passes as fxprune.passes; the folder is mapped to that name by pyproject.toml")

from fxprune.passes.finalize import Finalize, finalize
from fxprune.passes.lower import Lower
from fxprune.passes.mask import Mask
from fxprune.passes.raise_leaves import RaiseLeaves
from fxprune.passes.shrink import Shrink

__all__ = ["Finalize", "Lower", "Mask", "RaiseLeaves", "Shrink", "finalize"]
