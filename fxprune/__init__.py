"""fxprune: a pruning compiler for PyTorch.

Captures a model as a ``torch.fx`` graph, puts masks on its parameters as graph nodes, bakes them, and ships the result.
"""

from fxprune._version import __version__
from fxprune.analysis.dependencies import Dependencies
from fxprune.capture import capture
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
from fxprune.export.formats import to_exported_program, to_onnx, to_torchscript
from fxprune.graph.pickling import take_moved_names
from fxprune.importance import FPGM, LAMP, Activation, BatchNormScale, Hessian, Magnitude, Random, Taylor
from fxprune.methods.global_unstructured import global_unstructured
from fxprune.methods.histograms import Cut, Histogram, magnitude_histogram, merge_histograms
from fxprune.methods.methods import (
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
from fxprune.passes import finalize
from fxprune.pipeline import analyze, mask, prune, shrink
from fxprune.planning.plan import Plan
from fxprune.planning.planner import plan
from fxprune.reports.summary import summary
from fxprune.rules import register_rule
from fxprune.torch_internals.versions import give_fused_attention_forms, mend_keyword_targets, mend_lstm_shapes
from fxprune.verification.verify import verify

take_moved_names()
mend_lstm_shapes()
mend_keyword_targets()
give_fused_attention_forms()

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
