"""``python -m tests.zoo``: how much of the models of torchvision, timm and transformers dependency analysis covers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tests.zoo import coverage
from tests.zoo.catalogue import FAMILIES, select


def main(arguments: list[str] | None = None) -> int:
    """Measure the models that the command line names, print a table, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        recipes = select(options.names, options.family)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(recipe.name for recipe in recipes))
        return 0
    rows: list[coverage.Row] = []
    for row in coverage.measure_all(recipes, options.jobs, options.timeout):
        rows.append(row)
        print(f"[{len(rows)}/{len(recipes)}] {row.name} {row.note or 'ok'}", file=sys.stderr, flush=True)
        if options.json:  # after each, so that a run that is stopped leaves what it had
            _write(options.json, rows)
    print(coverage.table(rows))
    print(coverage.totals(rows))
    stale = [row.name for row in rows if row.is_complete and row.name in coverage.EXPECTED]
    if stale:
        print(f"complete, though EXPECTED says otherwise: {', '.join(stale)}")
    return int(any(row.is_failure for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or glob patterns, with or without the family; all models if none")
    parser.add_argument("--family", choices=FAMILIES, help="only the models of this library")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time; 0 for none but this one")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="limit for each model (600)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    return parser


def _write(path: Path, rows: list[coverage.Row]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
