"""``python -m tests.sequences``: makes random sequences of public calls on small graphs and checks the output after each.

``python -m tests.sequences --sequences 1 --seed N`` repeats the sequence of one seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

import torch

import fxprune
from tests.sequences.calls import CALLS, State, run
from tests.sequences.nets import network


def sequence(seed: int, length: int) -> tuple[list[str], str]:
    """Make the sequence of a seed; return its calls and what went wrong at the last, an empty string if nothing did."""
    draw = random.Random(seed)
    x = torch.randn(5, 4, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    gm = fxprune.capture(network(seed), x, frontend=draw.choice(["trace", "export"]))
    state, made = State(gm, x, gm, draw), list[str]()
    for _ in range(length):
        made.append(draw.choice(list(CALLS)))
        try:
            error = run(state, made[-1])
        except Exception as raised:  # the sequence is what failed
            error = f"{type(raised).__name__}: {raised}\n{''.join(traceback.format_tb(raised.__traceback__)[-4:])}"
        if error:
            return made, error
    return made, ""


def main(arguments: list[str] | None = None) -> int:
    """Make the sequences that the command line asks for, print those that fail, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sequences", description=__doc__)
    parser.add_argument("--sequences", type=int, default=500, metavar="N", help="how many (500)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each sequence has one of its own (0)")
    parser.add_argument("--length", type=int, default=8, help="how many calls each makes (8)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed, calls, start = [], 0, time.perf_counter()
    for seed in range(options.seed, options.seed + options.sequences):
        made, error = sequence(seed, options.length)
        calls += len(made)
        if error:
            failed.append(seed)
            print(f"seed {seed}: {', '.join(made)}\n  {error}", flush=True)
    ends = f"{len(failed)} failed{': seeds ' + ', '.join(map(str, failed)) if failed else ''}"
    print(f"{options.sequences} sequences of {calls} calls in {time.perf_counter() - start:.0f} s; {ends}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
