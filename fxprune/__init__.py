"""fxprune: a pruning compiler for PyTorch.

Captures a model as a ``torch.fx`` graph, puts masks on its parameters as graph nodes, bakes them, and ships the result.
"""

from fxprune._version import __version__
from fxprune.analysis import analyze
from fxprune.capture import capture
from fxprune.dependencies import Dependencies
from fxprune.errors import (
    AnalysisError,
    CaptureError,
    CaptureWarning,
    ExportError,
    ExportWarning,
    FxpruneError,
    HookError,
    InputError,
    LoweringError,
    PruningError,
    RuleError,
)
from fxprune.export import to_exported_program, to_onnx, to_torchscript
from fxprune.global_pruning import global_unstructured
from fxprune.methods import (
    BasePruningMethod,
    CustomFromMask,
    Identity,
    L1Unstructured,
    LnStructured,
    PruningContainer,
    RandomStructured,
    RandomUnstructured,
    custom_from_mask,
    identity,
    is_pruned,
    l1_unstructured,
    ln_structured,
    random_structured,
    random_unstructured,
    remove,
)
from fxprune.passes import finalize, mask
from fxprune.report import summary
from fxprune.rules import register_rule

__all__ = [
    "AnalysisError",
    "BasePruningMethod",
    "CaptureError",
    "CaptureWarning",
    "CustomFromMask",
    "Dependencies",
    "ExportError",
    "ExportWarning",
    "FxpruneError",
    "HookError",
    "Identity",
    "InputError",
    "L1Unstructured",
    "LnStructured",
    "LoweringError",
    "PruningContainer",
    "PruningError",
    "RandomStructured",
    "RandomUnstructured",
    "RuleError",
    "__version__",
    "analyze",
    "capture",
    "custom_from_mask",
    "finalize",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "mask",
    "random_structured",
    "random_unstructured",
    "register_rule",
    "remove",
    "summary",
    "to_exported_program",
    "to_onnx",
    "to_torchscript",
]
