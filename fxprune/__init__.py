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
    PlanError,
    PruneWarning,
    PruningError,
    RuleError,
    ShrinkError,
    VerificationError,
)
from fxprune.export import to_exported_program, to_onnx, to_torchscript
from fxprune.global_pruning import global_unstructured
from fxprune.histograms import Cut, Histogram, magnitude_histogram, merge_histograms
from fxprune.importance import (
    FPGM,
    LAMP,
    Activation,
    BatchNormScale,
    Hessian,
    Magnitude,
    Random,
    Taylor,
)
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
from fxprune.pipeline import prune, shrink
from fxprune.plan import Plan, plan
from fxprune.report import summary
from fxprune.rules import register_rule
from fxprune.verify import verify

__all__ = [
    "FPGM",
    "LAMP",
    "Activation",
    "AnalysisError",
    "BasePruningMethod",
    "BatchNormScale",
    "CaptureError",
    "CaptureWarning",
    "CustomFromMask",
    "Cut",
    "Dependencies",
    "ExportError",
    "ExportWarning",
    "FxpruneError",
    "Hessian",
    "Histogram",
    "HookError",
    "Identity",
    "InputError",
    "L1Unstructured",
    "LnStructured",
    "LoweringError",
    "Magnitude",
    "Plan",
    "PlanError",
    "PruneWarning",
    "PruningContainer",
    "PruningError",
    "Random",
    "RandomStructured",
    "RandomUnstructured",
    "RuleError",
    "ShrinkError",
    "Taylor",
    "VerificationError",
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
    "magnitude_histogram",
    "mask",
    "merge_histograms",
    "plan",
    "prune",
    "random_structured",
    "random_unstructured",
    "register_rule",
    "remove",
    "shrink",
    "summary",
    "to_exported_program",
    "to_onnx",
    "to_torchscript",
    "verify",
]
