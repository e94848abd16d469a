"""``python -m tests.interrupts``: interrupts public calls at random moments, and says what is not as before.

Each call runs in this process, which goes on to the next one; a change is reported once, under the call that makes it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter

import torch
from tabulate import tabulate

from tests.interrupts.calls import SUBJECTS
from tests.interrupts.runs import duration, interrupted, result


def main(arguments: list[str] | None = None) -> int:
    """Make the interrupts that the command line asks for, print what they leave changed, and return the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    names = [name for name in SUBJECTS if options.only in name]
    seconds = {name: duration(name) for name in names}
    complete = {name: result(name) for name in names}
    made, came, spoilt = Counter[str](), Counter[str](), Counter[str]()
    for number in range(options.interrupts):
        name = names[number % len(names)]
        after = chance.uniform(1e-4, 1.1 * seconds[name])
        in_time, changed = interrupted(name, after, complete[name])
        made[name] += 1
        came[name] += in_time
        spoilt[name] += bool(changed)
        if changed:
            print(f"{name} after {after:.4f} s: {', '.join(changed[:6])}", flush=True)
    rows = [(name, f"{1000 * seconds[name]:.0f}", made[name], came[name], spoilt[name]) for name in names]
    print(tabulate(rows, headers=("call", "ms", "interrupts", "in time", "changed")))
    print(f"{sum(made.values())} interrupts, {sum(came.values())} in time; {sum(spoilt.values())} left something changed")
    return int(bool(sum(spoilt.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.interrupts", description=__doc__)
    parser.add_argument("--interrupts", type=int, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="calls whose names hold this text")
    return parser


if __name__ == "__main__":
    sys.exit(main())
