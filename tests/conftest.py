"""What holds for all tests."""

from __future__ import annotations

import gc
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of one network in a file follow each other: capturing it, which they share, is most of the work."""

    def place(item: pytest.Item) -> tuple[str, str, str]:
        parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if not {"name", "frontend"} <= parameters.keys():
            return str(item.path), "", ""
        return str(item.path), str(parameters["name"]), str(parameters["frontend"])

    files = {str(item.path): number for number, item in enumerate(reversed(items))}  # keep the order of files
    items.sort(key=lambda item: (-files[str(item.path)], *place(item)))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays until the end; networks captured once for many tests are many objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    _seed_no_missing_devices()


def _seed_no_missing_devices() -> None:
    """Let ``torch.manual_seed`` pass over kinds of devices that are not there: for each it keeps the stack of its call."""
    import torch  # here, so that a process that runs no tests itself does without

    for device in (torch.cuda, torch.xpu, torch.mtia):
        if not device.is_available():
            pytest.MonkeyPatch().setattr(device, "manual_seed_all", lambda seed: None, raising=False)
