"""Make ``import torchvision`` work where its compiled operators cannot be loaded."""

import importlib.machinery
import importlib.util

import torch

# The operators for which torchvision registers a shape function on import without first asking whether its
# compiled library loaded. Everything else it registers, it guards.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# The names of the extension with torchvision's operators: up to torchvision 0.28, and from 0.29 on.
_LIBRARIES = ("_C", "_C_stable")

# A schema lives only as long as the Library object that defined it.
_library: torch.library.Library | None = None


def install() -> None:
    """Define the operator schemas torchvision cannot be imported without, unless they are there already.

    The operators get a schema and no kernel: models import and run, and only calling one of the operators fails.
    Does nothing where torchvision is missing or its own operators load, and nothing on a second call.
    """
    global _library
    if _library is not None or _load_compiled():
        return
    missing = [schema for schema in _SCHEMAS if not hasattr(torch.ops.torchvision, schema.partition("(")[0])]
    if missing:
        _library = torch.library.Library("torchvision", "DEF")
        for schema in missing:
            _library.define(schema)


def _load_compiled() -> bool:
    """Load torchvision's compiled operators and say whether the schemas need no help of ours.

    Has to come first: a compiled library that finds its schemas already defined aborts its own import.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    finder = importlib.machinery.FileFinder(spec.submodule_search_locations[0], loader)
    libraries = [library for name in _LIBRARIES if (library := finder.find_spec(name)) and library.origin]
    if not libraries:
        return False
    try:
        for library in libraries:
            torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True
