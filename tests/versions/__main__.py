"""``python -m tests.versions [name ...]``: runs a part of the suite on every supported torch, each in its own environment.

Arguments after ``--`` go to pytest. Where pip takes torch from, its own settings say (``PIP_EXTRA_INDEX_URL``): the builds of
PyPI for Linux bring CUDA and take about 6 GB each; the tests use the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.versions.environments import ENVIRONMENTS, ROOT, Environment, EnvironmentMissingError, select
from tests.versions.suite import PARTS, Row, run, table


def main(arguments: list[str] | None = None) -> int:
    """Test the environments that the command line names, print a table, and return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    own, for_pytest = given, list[str]()
    if "--" in given:
        own, for_pytest = given[: given.index("--")], given[given.index("--") + 1 :]
    parser = _parser()
    options = parser.parse_args(own)
    if options.list:
        print("\n".join(environment.name for environment in ENVIRONMENTS))
        return 0
    try:
        environments = select(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.install:
        return _install(environments, options.folder)
    tests = [*(for_pytest or PARTS[options.part]), *([f"--numprocesses={options.jobs}"] if options.jobs else [])]
    rows = [_row(environment, options.folder, tests) for environment in environments]
    print(table(rows))
    return int(any(row.is_failure for row in rows))


def _install(environments: Iterable[Environment], folder: Path) -> int:
    """Make environments, say which cannot be made, and return the exit status."""
    missing = 0
    for environment in environments:
        try:
            environment.make(folder)
        except EnvironmentMissingError as error:
            print(f"{environment.name}: {error}", flush=True)
            missing = 1
    return missing


def _row(environment: Environment, folder: Path, tests: list[str]) -> Row:
    print(f"{environment.name}: {' '.join(tests) or 'all tests'}", flush=True)
    start = time.perf_counter()
    try:
        interpreter = environment.make(folder)
    except EnvironmentMissingError as error:
        return Row(environment.name, note=str(error))
    made = time.perf_counter()
    row = run(interpreter, tests)
    return dataclasses.replace(
        row, name=environment.name, install_seconds=made - start, test_seconds=time.perf_counter() - made
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="names or glob patterns, such as '2.9.1*'; five usual ones if none")
    parser.add_argument("--part", choices=PARTS, default="short", help="what of the suite (short)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-versions", help="of the environments (.venv-versions)")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="test processes at a time; 0 for none but one (0)")
    parser.add_argument("--install", action="store_true", help="make the environments and stop")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
