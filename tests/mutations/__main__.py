"""``python -m tests.mutations``: mutates shrunk golden networks; every fault that the full check finds the quick one finds."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch
from tabulate import tabulate

from tests.mutations.runs import all_mutations, outcome


def main(arguments: list[str] | None = None) -> int:
    """Make the mutations that the command line asks for, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="mutations of each kind for each network (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round (0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="networks whose names hold this text")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = {}
    for name, frontend, mutation in all_mutations():
        if options.only not in name:
            continue
        for seed in range(options.seed, options.seed + options.rounds):
            found = outcome(name, frontend, mutation, seed)
            if found.what:
                told = "both" if found.full and found.quick else "full" if found.full else "quick" if found.quick else "neither"
                counts.setdefault(mutation.__name__, Counter())[told] += 1
                if told in ("full", "quick"):
                    print(
                        f"found by the {told} check alone: {name} ({frontend}), {mutation.__name__}: {found.what}", flush=True
                    )
    heads = ("both", "full", "quick", "neither")
    print(tabulate([(kind, *(each[head] for head in heads)) for kind, each in counts.items()], headers=("mutation", *heads)))
    missed, detectable = (sum(each[head] for each in counts.values()) for head in ("full", "both"))
    print(f"{missed + detectable} mutations that the full check finds; the quick check finds {detectable} of them")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
