"""A part of the suite in one environment, and what came of it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tabulate import tabulate

from tests.versions.environments import ROOT

# "short" is what CI runs on the newest torch: where versions of torch have differed.
PARTS: dict[str, tuple[str, ...]] = {
    "short": (
        "tests/test_torch_versions.py",
        "tests/methods/test_methods.py",
        "tests/golden/test_groups.py",
        "tests/export",
        "tests/functional",
        "tests/passes/test_fold_constants.py",
        "tests/passes/test_lower.py",
        "tests/passes/test_mask_units.py",
        "tests/passes/repair/test_repair.py",
        "tests/rules",
        "tests/frontends/test_torch_export.py",
    ),
    "full": (),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """How one environment fared: how many tests passed, failed and were skipped, and which failed."""

    name: str
    passed: int = 0
    failures: tuple[str, ...] = ()
    skipped: int = 0
    install_seconds: float = 0.0
    test_seconds: float = 0.0
    note: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether something failed, or nothing ran."""
        return bool(self.failures or self.note) or not self.passed


def run(interpreter: Path, arguments: Sequence[str]) -> Row:
    """Run pytest with these arguments in the checkout, and return what came of it, under no name yet."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode not in (0, 1) or not report.is_file():
            return Row("", note=f"pytest ended with {done.returncode}")
        return read(report)


def read(report: Path) -> Row:
    """Read a report in the format of JUnit, as pytest writes it."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = dict.fromkeys(f"{case.get('classname')}::{case.get('name')}" for case in failures)
    ran = len({(case.get("classname"), case.get("name")) for case in cases})
    return Row("", passed=ran - len(names) - len(skipped), failures=tuple(names), skipped=len(skipped))


def table(rows: Sequence[Row]) -> str:
    """Print rows as a table, with the tests that failed below it."""
    headers = ("environment", "passed", "failed", "skipped", "install s", "tests s", "note")
    lines = [
        (r.name, r.passed, len(r.failures), r.skipped, round(r.install_seconds), round(r.test_seconds), r.note) for r in rows
    ]
    failures = [f"{row.name}: {failure}" for row in rows for failure in row.failures]
    return "\n".join([tabulate(lines, headers=headers), *failures])
