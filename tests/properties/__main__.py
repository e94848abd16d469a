"""``python -m tests.properties``: checks a law on random networks with random plans; of those that fail, prints the shortest.

``python -m tests.properties --programs 1 --seed N`` repeats the program of one seed; ``--show`` prints it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import torch
from tabulate import tabulate

from tests.properties.laws import LAWS, Outcome, outcome_of
from tests.properties.minimise import minimised
from tests.properties.networks import ASYMMETRIC, STEPS, network


def main(arguments: list[str] | None = None) -> int:
    """Check the programs that the command line names, print what came of it, and return the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    without = ASYMMETRIC if options.law == "exchange" and not options.all_steps else frozenset[str]()
    outcomes, start = {}, time.perf_counter()
    for seed in range(options.seed, options.seed + options.programs):
        program = network(seed, without)
        if options.show:
            print(f"{program.text}\n", flush=True)
        outcomes[seed] = outcome = outcome_of(options.law, program)
        if outcome.error:
            print(f"seed {seed}: {outcome.error}", flush=True)
            if not options.whole:
                program = minimised(program, lambda p: outcome_of(options.law, p).error)
            print(f"{program.text}\n# {outcome_of(options.law, program).error}\n", flush=True)
    print(_coverage(list(outcomes.values())))
    print(_totals(outcomes, time.perf_counter() - start))
    return int(any(outcome.error for outcome in outcomes.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.properties", description=__doc__)
    parser.add_argument("--programs", type=int, default=500, metavar="N", help="how many (500)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each program has one of its own (0)")
    parser.add_argument("--law", choices=LAWS, default="shrink", help="what has to hold (shrink)")
    parser.add_argument("--all-steps", action="store_true", help='with "exchange": also steps that may rightly break it')
    parser.add_argument("--show", action="store_true", help="print every program")
    parser.add_argument("--whole", action="store_true", help="print failing programs as they are")
    return parser


def _coverage(outcomes: list[Outcome]) -> str:
    """Return how often each kind of step occurred and how often its results had channels that can go."""
    occurs, free = Counter[str](), Counter[str]()
    for outcome in outcomes:
        for kind, (often, frees) in outcome.free.items():
            occurs[kind] += often
            free[kind] += frees
    rows = [(kind, count, free[kind], round(100 * free[kind] / count)) for kind, count in occurs.items()]
    rows.sort(key=lambda row: row[3])
    missing = sorted(set(STEPS) - set(occurs))
    return tabulate(rows, headers=("step", "occurs", "free", "free %")) + f"\nnever: {', '.join(missing) or 'none'}"


def _totals(outcomes: dict[int, Outcome], seconds: float) -> str:
    pruned = [outcome.removed for outcome in outcomes.values() if outcome.removed > 0]
    failed = [str(seed) for seed, outcome in outcomes.items() if outcome.error]
    units = sum(outcome.units for outcome in outcomes.values())
    mean = 100 * sum(pruned) / len(pruned) if pruned else 0.0
    return (
        f"{len(outcomes)} programs with {units} units in {seconds:.0f} s; {len(pruned)} pruned, of their parameters "
        f"{mean:.0f} % on average; {len(failed)} failed{': seeds ' + ', '.join(failed) if failed else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
