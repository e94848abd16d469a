"""The benchmark of memory runs, in a short form, and sees what is there to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.benchmarks import memory


def test_memory(apart: list[str]) -> None:
    (row,) = memory.memory(("torchvision/resnet18",), rounds=1)
    assert apart == ["planned torchvision/resnet18"]
    assert row["extra %"] == pytest.approx(100 * row["extra MiB"] / row["parameters MiB"])
    assert row["without library code %"] == pytest.approx(100 * row["without library code MiB"] / row["parameters MiB"])
    assert row["on meta, in a group %"] > 90


def test_the_peak_counts_what_is_freed_again() -> None:
    before = memory.peak_from_here()
    torch.ones(1 << 24)  # 64 MiB
    assert memory.status("VmHWM") - before > 60 << 20
    assert memory.peak_from_here() < before + (30 << 20)
    assert memory.status("VmHWM") < before + (30 << 20)


def test_mapped_libraries_take_no_memory_of_the_process() -> None:
    files, taken = memory.status("RssFile"), []
    for _ in range(3):  # other threads of the process take memory, too, but not each time
        own = memory.status("RssAnon")
        memory.map_libraries()
        taken.append(memory.status("RssAnon") - own)
    assert memory.status("RssFile") >= files
    assert min(taken) < 1 << 20


def test_a_real_tensor_is_seen() -> None:
    with memory.Largest() as largest:
        torch.zeros(1000, device="meta") + 1
        assert largest.nbytes == 0
        torch.zeros(10)
        torch.zeros(5)
    assert largest.nbytes == 40


def test_an_unknown_figure_is_no_number() -> None:
    work: Any = memory.status
    with pytest.raises(StopIteration):
        work("Nothing")
