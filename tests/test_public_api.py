"""The public names, listed in one place: everything else is free to change."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import fxprune

PUBLIC = {
    "capture", "analyze", "register_rule", "Dependencies", "AnalysisError", "RuleError",
    "mask", "finalize", "summary", "to_torchscript", "to_exported_program", "to_onnx",
    "BasePruningMethod", "PruningContainer", "Identity", "RandomUnstructured", "L1Unstructured", "RandomStructured",
    "LnStructured", "CustomFromMask",
    "identity", "random_unstructured", "l1_unstructured", "random_structured", "ln_structured", "custom_from_mask",
    "global_unstructured", "remove", "is_pruned",
    "FxpruneError", "CaptureError", "InputError", "HookError", "LoweringError", "PruningError", "ExportError",
    "CaptureWarning", "ExportWarning",
    "plan", "Plan", "shrink", "verify", "prune", "PlanError", "ShrinkError", "VerificationError", "PruneWarning",
    "Cut", "Histogram", "magnitude_histogram", "merge_histograms",
    "Magnitude", "Random", "BatchNormScale", "LAMP", "FPGM", "Taylor", "Hessian", "Activation",
    "__version__",
}  # fmt: skip


def test_public_names() -> None:
    assert set(fxprune.__all__) == PUBLIC
    assert all(hasattr(fxprune, name) for name in PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_names_are_documented(name: str) -> None:
    assert getattr(fxprune, name).__doc__


def test_errors_have_one_base() -> None:
    errors = importlib.import_module("fxprune.errors")
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "fxprune.errors":
            assert issubclass(value, fxprune.FxpruneError | UserWarning)


def test_passes_are_imported_under_their_name_only() -> None:
    assert importlib.import_module("fxprune.passes").__name__ == "fxprune.passes"
    result = subprocess.run([sys.executable, "-c", "import passes"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "import the passes as fxprune.passes" in result.stderr


def test_importing_fxprune_does_not_import_what_it_may_not_need() -> None:
    heavy = ("onnx", "onnxscript", "sklearn", "torchvision", "transformers", "timm")
    code = f"import sys, fxprune; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
