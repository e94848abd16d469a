"""What ``python -m tests.versions`` says of the environments and of what came of the tests in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.versions.__main__ import main
from tests.versions.environments import ENVIRONMENTS, ROOT, USUAL, Environment, EnvironmentMissingError, select
from tests.versions.suite import PARTS, Row, read, table

_TESTS = """
import pytest

def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip
def test_skipped(): pass
@pytest.fixture
def broken(): raise ValueError
def test_without_its_fixture(broken): pass
"""


def test_reports_are_read(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "--junitxml=report.xml"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    row = read(tmp_path / "report.xml")
    assert (row.passed, row.skipped) == (1, 1)
    assert row.failures == ("test_some::test_bad", "test_some::test_without_its_fixture")
    assert row.is_failure


def test_no_tests_at_all_are_a_failure() -> None:
    assert Row("").is_failure
    assert Row("", passed=3, note="pytest ended with 2").is_failure
    assert not Row("", passed=3, skipped=1).is_failure


def test_tables_name_what_failed() -> None:
    text = table([Row("2.9.1-py3.10", 3, ("test_some::test_bad",), 1, 61.2, 9.7)])
    assert text.splitlines()[2].split() == ["2.9.1-py3.10", "3", "1", "1", "61", "10"]
    assert text.splitlines()[3] == "2.9.1-py3.10: test_some::test_bad"


def test_environments_are_chosen_by_patterns() -> None:
    assert [environment.name for environment in select([])] == list(USUAL)
    assert {environment.torch for environment in select(["2.14*"])} == {"2.14.1"}
    assert select(["2.*"]) == list(ENVIRONMENTS)
    with pytest.raises(ValueError, match=r"no environment fits '1\.0'; there are 2\.9\.1-py3\.10, "):
        select(["2.14*", "1.0"])


def test_a_missing_python_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissingError, match=r"there is no Python 3\.99 on this machine"):
        Environment("2.13.0", "0.28.0", "3.99").make(tmp_path)


def test_environments_are_made_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def make(environment: Environment, folder: Path) -> None:
        made.append((environment.name, folder))
        if environment.python == "3.12":
            raise EnvironmentMissingError("no such Python")

    monkeypatch.setattr(Environment, "make", make)
    assert main(["2.14.1-py3.11", "--folder", str(tmp_path), "--install"]) == 0
    assert main(["2.14.1-py3.1[12]", "--folder", str(tmp_path), "--install"]) == 1
    assert made == [(f"2.14.1-py{python}", tmp_path) for python in ("3.11", "3.11", "3.12")]
    assert capsys.readouterr().out.splitlines() == ["2.14.1-py3.12: no such Python"]


@pytest.mark.parametrize("path", sorted({path for part in PARTS.values() for path in part}))
def test_parts_name_what_there_is(path: str) -> None:
    assert (ROOT / path).exists()
