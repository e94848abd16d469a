"""``python -m tests.zoo``: how much of the models of torchvision, timm and transformers dependency analysis covers.

With ``--prune`` the models are pruned by half instead, and what is masked is compared with what is small.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tests.zoo import coverage, pruning
from tests.zoo.catalogue import FAMILIES, select
from tests.zoo.recipe import Recipe

_Row = TypeVar("_Row", coverage.Row, pruning.Row)


def main(arguments: list[str] | None = None) -> int:
    """Measure the models that the command line names, print a table, and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        exact = [name for name in pruning.EXACT if options.exact and name.startswith(options.family or "")]
        recipes = select([*options.names, *exact], options.family)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print("\n".join(recipe.name for recipe in recipes))
        return 0
    return _prune(recipes, options) if options.prune else _cover(recipes, options)


def _cover(recipes: Sequence[Recipe], options: argparse.Namespace) -> int:
    rows = list(_watched(coverage.measure_all(recipes, options.jobs, options.timeout), len(recipes), options.json))
    print(coverage.table(rows))
    print(coverage.totals(rows))
    stale = [row.name for row in rows if row.is_complete and row.name in coverage.EXPECTED]
    if stale:
        print(f"complete, though EXPECTED says otherwise: {', '.join(stale)}")
    return int(any(row.is_failure for row in rows))


def _prune(recipes: Sequence[Recipe], options: argparse.Namespace) -> int:
    rows = list(_watched(pruning.measure_all(recipes, options.jobs, options.timeout), len(recipes), options.json))
    print(pruning.table(rows))
    print(pruning.totals(rows))
    return int(any(row.is_failure for row in rows))


def _watched(rows: Iterator[_Row], count: int, json_file: Path | None) -> Iterator[_Row]:
    """Pass rows on; say of each how it went and, so that a run that is stopped leaves what it had, write those so far."""
    done: list[_Row] = []
    for row in rows:
        done.append(row)
        print(f"[{len(done)}/{count}] {row.name} {row.note or 'ok'}", file=sys.stderr, flush=True)
        if json_file:
            json_file.write_text(json.dumps([dataclasses.asdict(r) for r in done], indent=1) + "\n")
        yield row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="names or glob patterns, with or without the family; all models if none")
    parser.add_argument("--family", choices=FAMILIES, help="only the models of this library")
    parser.add_argument("--prune", action="store_true", help="prune the models by half, and compare masked with shrunk")
    parser.add_argument("--exact", action="store_true", help="the models that have to be pruned exactly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time; 0 for none but this one")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="limit for each model (600)")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
