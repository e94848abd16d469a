"""Notes where a model's code reads ``self.training`` while the model is captured, and switches the mode of modules."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from torch import nn

from fxprune.graph.paths import Modules, join
from fxprune.torch_internals.switches import watching_modes
from fxprune.torch_internals.tensors import version_of


@dataclasses.dataclass(frozen=True)
class Read:
    """A read of the ``training`` flag of the module at path ``owner``, by code of the module ``reader`` at ``line``."""

    owner: str
    reader: str
    line: str

    def __str__(self) -> str:
        return f"{self.owner or '(the model itself)'} at {self.line}"


class ModeReads:
    """The reads of ``module.training`` during a capture, in order, without repetition."""

    def __init__(self, modules: Modules) -> None:
        # By their attributes: for a module with several names torch.export has stand-ins with the attributes of the module.
        self._paths = {id(vars(module)): path for path, module in modules}
        every = modules[0][1].named_modules(remove_duplicate=False) if modules else ()
        self._first = {path: self._paths[id(vars(module))] for path, module in every if id(vars(module)) in self._paths}
        self._seen: dict[Read, None] = {}
        self.writes: dict[str, str] = {}  # the line that writes the flag of the module at a path

    def note_write(self, module: nn.Module, frame: FrameType | None) -> None:
        """Record that the code of ``frame`` writes the flag of ``module``, mostly by its method ``train`` or ``eval``."""
        owner = self._paths.get(id(vars(module)))
        while frame is not None and frame.f_code.co_filename == nn.Module.train.__code__.co_filename:
            frame = frame.f_back
        if owner is not None and frame is not None:
            self.writes.setdefault(owner, f"{frame.f_code.co_filename}:{frame.f_lineno}")

    def note(self, module: nn.Module, frame: FrameType) -> None:
        """Record that the code of ``frame`` reads the flag of ``module``."""
        owner = self._paths.get(id(vars(module)))
        if owner is not None:
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            self._seen.setdefault(Read(owner, self._reader(frame, owner), line))

    def _reader(self, frame: FrameType | None, default: str) -> str:
        """Return the path of the module of the innermost method that ``frame`` runs in, or ``default`` outside all methods."""
        while frame is not None:
            caller = frame.f_locals.get("self")
            path = self._paths.get(id(vars(caller))) if isinstance(caller, nn.Module) else None
            if path is not None:
                return path
            frame = frame.f_back
        return default

    def __bool__(self) -> bool:
        return bool(self._seen)

    def owner_for(self, path: str) -> str | None:
        """Return the path of the module whose flag the code of the module at ``path`` depends on; None if several may be it.

        Code that reads no flag gets the mode as an argument from the innermost module around it that reads one: in
        ``self.block(x, drop=self.training)`` the flag of the caller decides on the nodes of ``block``.
        """
        while True:
            path = self._first.get(path, path)
            if owners := {read.owner for read in self._seen if read.reader == path}:
                return path if path in owners else owners.pop() if len(owners) == 1 else None
            if not path:
                return ""
            path = path.rpartition(".")[0]

    def inside(self, path: str) -> list[Read]:
        """Return the reads of flags of the module at ``path`` and of modules around it, innermost first; if none, all reads."""
        around = [r for r in self._seen if not r.owner or path == r.owner or path.startswith(r.owner + ".")]
        return sorted(around, key=lambda read: -len(read.owner)) or list(self._seen)


@contextlib.contextmanager
def noting_mode_reads(modules: Modules) -> Iterator[ModeReads]:
    """Record, within the context, every read of the ``training`` flag of one of ``modules``."""
    reads = ModeReads(modules)
    with watching_modes(reads.note, reads.note_write):
        yield reads


@contextlib.contextmanager
def in_mode(modules: Iterable[tuple[str, nn.Module]], training: bool) -> Iterator[None]:
    """Put ``modules`` in train or eval mode within the context."""
    attributes = [vars(module) for _, module in modules]
    before = [found["training"] for found in attributes]
    for found in attributes:
        found["training"] = training
    try:
        yield
    finally:
        for found, flag in zip(attributes, before, strict=True):
            found["training"] = flag


def switching_changes(modules: Modules) -> list[str]:
    """Describe each module whose own ``train`` or ``eval`` changes more than flags; both are tried on a copy."""
    notes = []
    for path, module in modules:
        if type(module).train is nn.Module.train and type(module).eval is nn.Module.eval:
            continue
        changed = _changed_by_switching(module)
        if changed:
            notes.append(
                f"{type(module).__name__}.train() of module {path or '(the model itself)'!r} changes {', '.join(changed)}, "
                "where torch.nn.Module.train() sets every flag and nothing else, as it does on the graph"
            )
    return notes


def _changed_by_switching(module: nn.Module) -> list[str]:
    for copied in (_without_values, copy.deepcopy):
        try:
            return _changed_in(copied(module))
        except Exception:  # its train() may need values, so the next copy has them; or the module cannot be copied
            continue
    return ["attributes that could not be compared"]


def _without_values(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device, where tensors take no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        bare = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    for part in module.modules():  # most of a deep copy's time goes into empty registries of hooks
        memo |= {id(value): value.copy() for value in vars(part).values() if isinstance(value, dict) and not value}
    return copy.deepcopy(module, memo)


def _changed_in(copied: nn.Module) -> list[str]:
    """Switch a module to the other mode and back; return the names of the attributes that change, except the flag."""
    changed: dict[str, None] = {}
    for training in (not copied.training, copied.training):
        before = {path: dict(vars(m)) for path, m in copied.named_modules()}
        versions = {name: version_of(t) for name, t in copied.state_dict(keep_vars=True).items()}
        copied.train(training)
        for path, part in copied.named_modules():
            if part.training is not training:
                changed[f"not the mode of {path!r}"] = None
            was, now = before.get(path, {}), vars(part)
            # Emptied caches are fine: no value of the graph comes from a cache.
            names = [k for k in {**was, **now} if k != "training" and now.get(k) is not was.get(k) and now.get(k) != {}]
            changed.update(dict.fromkeys(join(path, name) for name in names))
        tensors = copied.state_dict(keep_vars=True)
        changed.update(dict.fromkeys(name for name, t in tensors.items() if versions.get(name) != version_of(t)))
    return list(changed)
