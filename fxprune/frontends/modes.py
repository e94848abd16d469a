"""Notices where a model's code depends on ``self.training`` while it is being captured."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from torch import Tensor, nn

# (path of the module that was asked, file and line of the code that asked)
Read = tuple[str, str]


class ModeReads:
    """The reads of ``module.training`` seen during a capture, in order, each once."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._seen: dict[Read, None] = {}

    def note(self, module: nn.Module, filename: str, line: int) -> None:
        """Record that the code at ``filename:line`` asked ``module`` for its mode."""
        path = self._paths.get(id(module))
        if path is not None:
            self._seen.setdefault((path, f"{filename}:{line}"))

    def __bool__(self) -> bool:
        return bool(self._seen)

    def inside(self, path: str) -> list[Read]:
        """Return the reads by the module at ``path`` or one around it, the innermost first."""
        around = [read for read in self._seen if not read[0] or path == read[0] or path.startswith(read[0] + ".")]
        return sorted(around, key=lambda read: -len(read[0]))

    def all(self) -> list[Read]:
        """Return all reads."""
        return list(self._seen)


class _NotingFlag:
    """A data descriptor that stands for ``training`` on nn.Module: stores as before, and notes who reads."""

    def __init__(self, reads: ModeReads) -> None:
        self.reads = reads

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> object:
        if module is None:
            raise AttributeError("training")
        caller = sys._getframe(1)
        self.reads.note(module, caller.f_code.co_filename, caller.f_lineno)
        try:
            return module.__dict__["training"]
        except KeyError:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute 'training'") from None

    def __set__(self, module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value


@contextlib.contextmanager
def noting_mode_reads(model: nn.Module) -> Iterator[ModeReads]:
    """Record, within the context, every read of the ``training`` flag of a module of ``model``.

    ``training`` is a plain attribute, so the only place to stand is the class: as torch.fx does for calls, nn.Module is
    patched for the time of the capture.
    """
    reads = ModeReads(model)
    nn.Module.training = _NotingFlag(reads)  # type: ignore[assignment]
    try:
        yield reads
    finally:
        del nn.Module.training


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool | None) -> Iterator[None]:
    """Put every module of ``model`` in train or eval mode within the context; ``None`` leaves them as they are."""
    before = {module: module.__dict__["training"] for module in model.modules()}
    if training is not None:
        for module in before:
            module.__dict__["training"] = training
    try:
        yield
    finally:
        for module, flag in before.items():
            module.__dict__["training"] = flag


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes back after the context, however the model's code changed them while captured.

    Within the context, plain dicts of tensors start empty: they are caches of what ``forward`` computed before, and a
    cached tensor would enter the graph as a constant.
    """
    registries = set(vars(nn.Module()))
    saved = []
    for module in model.modules():
        attributes = dict(module.__dict__)
        contents = {k: v.copy() for k, v in attributes.items() if isinstance(v, dict | list | set)}
        saved.append((module, attributes, contents))
        for name, content in contents.items():
            if name not in registries and _is_tensor_cache(content):
                attributes[name].clear()
    try:
        yield
    finally:
        for module, attributes, contents in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in contents.items():
                held = attributes[name]
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)


def _is_tensor_cache(content: object) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
