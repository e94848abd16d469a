"""How much memory it takes to capture, analyse and plan, next to the parameters of the model."""

from __future__ import annotations

import ctypes
import gc
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from tests.benchmarks.pipeline import build
from tests.zoo.apart import call_apart

NAMES = ("torchvision/resnet50", "torchvision/vit_b_16", "transformers/bert", "transformers/llama")
_ROUNDS = 3
_SECONDS = 600.0
_AMOUNT = 0.5
_MIB = 1 << 20
_POPULATE_READ = 22  # of madvise, since Linux 5.14

Work = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def status(key: str) -> int:
    """Return a figure of this process's memory in bytes, by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_from_here() -> int:
    """Give free memory back, let the peak count from here, and return the bytes in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def map_libraries() -> None:
    """Map all pages of the libraries' code, as far as the system can: they are the same files' in every process."""
    populate = ctypes.CDLL(None).madvise
    populate.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, *_, where = line.split()
        if access.startswith("r-") and where.startswith("/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            populate(start, end - start, _POPULATE_READ)


class Largest(TorchDispatchMode):
    """Notes the largest tensor with values that any operator returns, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if type(leaf) is Tensor and leaf.device.type != "meta":
                self.nbytes = max(self.nbytes, leaf.nbytes)
        return result


def planned(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture, analyse and plan; return all that a user holds at the end."""
    gm = fxprune.capture(model, args, kwargs)
    deps = fxprune.analyze(gm)
    return gm, deps, fxprune.plan(deps, _AMOUNT)


def captured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture and analyse, which is all that a model without values allows."""
    gm = fxprune.capture(model, args, kwargs)
    return gm, fxprune.analyze(gm)


def called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the model once: what its own activations take."""
    with torch.no_grad():
        return model(*args, **kwargs)


_MAPPED = "planned, libraries mapped"
WORK: dict[str, Work] = {"planned": planned, _MAPPED: planned, "called": called}


def _extra(what: str) -> dict[str, float]:
    """Return the bytes of a model's parameters, and how many more than before a work takes at its peak.

    These include the pages of libraries that are read for the first time, unless the work is "planned, libraries mapped".
    """
    work, name = what.rsplit(" ", 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    small = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(512, 4)).eval()
    WORK[work](small, (torch.randn(1, 3, 8, 8),), {})  # imports and the like
    model, args, kwargs = build(name)
    size = sum(p.nbytes for p in model.parameters())
    if work == _MAPPED:
        map_libraries()
    before = peak_from_here()
    held = WORK[work](model, args, kwargs)
    extra = status("VmHWM") - before
    del held
    return {"parameters": size, "extra": extra}


def _without_values(name: str) -> dict[str, float]:
    """Return what capture and analysis of a model on the meta device take, and the largest real tensor among it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, args, kwargs = build(name)
    size = sum(p.nbytes for p in model.parameters())
    model = model.to("meta")
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
    before = peak_from_here()
    with Largest() as largest:
        gm, deps = captured(model, args, kwargs)
    real = [t for t in (*gm.parameters(), *gm.buffers()) if t.device.type != "meta"]
    return {
        "parameters": size,
        "extra": status("VmHWM") - before,
        "largest": max([largest.nbytes, *(t.nbytes for t in real)]),
        "share": deps.share,
    }


def memory(names: tuple[str, ...] = NAMES, rounds: int = _ROUNDS) -> list[dict[str, Any]]:
    """Measure what capture, analysis and plan take beyond the model at their peak, each run in a process of its own.

    One column is for what a single call of the model takes, which is for the activations: capture calls the model.
    """
    rows = []
    for name in names:
        found = {work: [call_apart(_extra, f"{work} {name}", _SECONDS) for _ in range(rounds)] for work in WORK}
        size = found["planned"][0]["parameters"]
        planned, own, call = (statistics.median(run["extra"] for run in found[work]) for work in WORK)
        meta = call_apart(_without_values, name, _SECONDS)
        rows.append(
            {
                "model": name,
                "parameters MiB": size / _MIB,
                "extra MiB": planned / _MIB,
                "extra %": 100 * planned / size,
                "without library code MiB": own / _MIB,
                "without library code %": 100 * own / size,
                "one call MiB": call / _MIB,
                "beyond a call %": 100 * (planned - call) / size,
                "on meta, extra MiB": meta["extra"] / _MIB,
                "on meta, largest real tensor, bytes": meta["largest"],
                "on meta, in a group %": 100 * meta["share"],
            }
        )
        print(rows[-1], flush=True)
    return rows
