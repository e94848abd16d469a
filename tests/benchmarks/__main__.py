"""``python -m tests.benchmarks [name ...]``: prints one table for each benchmark; ``--json FILE`` writes the numbers."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from tests.benchmarks import accuracy, analysis, masks, memory, pipeline, shrunk, steps

BENCHMARKS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "analysis": analysis.usual_models,
    "depth": analysis.depth,
    "width": analysis.width,
    "resolution": analysis.resolution,
    "large": analysis.large,
    "memory": memory.memory,
    "shrunk": shrunk.latency,
    "selection": masks.selection,
    "step": masks.training_step,
    "masks": masks.mask_memory,
    "pipeline": pipeline.pipeline,
    "zoo": pipeline.zoo,
    "steps": steps.steps,
    "accuracy": accuracy.kept,
}


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; all but zoo by default")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread")
    results = {}
    for name in arguments.names or [name for name in BENCHMARKS if name != "zoo"]:
        results[name] = BENCHMARKS[name]()
        print(f"\n{name}\n{tabulate(results[name], headers='keys', floatfmt='.3g')}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
