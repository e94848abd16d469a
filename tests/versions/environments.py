"""The environments: which torch, torchvision and Python, and how each is made."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


class EnvironmentMissingError(Exception):
    """An environment cannot be made; the message says why."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """One torch, the torchvision that belongs to it, and one Python."""

    torch: str
    torchvision: str
    python: str

    @property
    def name(self) -> str:
        """The name, such as ``2.14.1-py3.13``."""
        return f"{self.torch}-py{self.python}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip installs besides the checkout."""
        return f"torch=={self.torch}", f"torchvision=={self.torchvision}"

    def make(self, folder: Path) -> Path:
        """Make the environment below ``folder``, unless it stands there, and return its interpreter.

        Raises:
            EnvironmentMissingError: this machine has no such Python, or pip fails.
        """
        home = (folder / self.name).absolute()  # not resolve(): the link to the interpreter is what makes the environment
        interpreter, stands = home / "bin" / "python", home / "stands.txt"
        wanted = "\n".join((str(ROOT), *self.requirements))
        if stands.is_file() and stands.read_text() == wanted:
            return interpreter
        _run([str(_interpreter(self.python)), "-m", "venv", "--clear", str(home)])
        _run([str(interpreter), "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[test]", *self.requirements])
        stands.write_text(wanted)
        return interpreter


PINNED = "2.13.0"  # of the extra "dev", with which the whole suite runs
_TORCHVISION = {"2.9.1": "0.24.1", PINNED: "0.28.0", "2.14.1": "0.29.1"}
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ENVIRONMENTS = tuple(Environment(torch, vision, python) for torch, vision in _TORCHVISION.items() for python in _PYTHONS)
# Each torch and each Python at least once, and the ends of both with each other.
USUAL = ("2.9.1-py3.10", "2.9.1-py3.13", "2.13.0-py3.11", "2.14.1-py3.12", "2.14.1-py3.13")


def select(patterns: Iterable[str]) -> list[Environment]:
    """Return the environments of these names or glob patterns, in the order of the table; the usual ones if there are none.

    Raises:
        ValueError: no environment fits a pattern.
    """
    wanted = tuple(patterns) or USUAL
    for pattern in wanted:
        if not any(fnmatch(environment.name, pattern) for environment in ENVIRONMENTS):
            raise ValueError(f"no environment fits {pattern!r}; there are {', '.join(e.name for e in ENVIRONMENTS)}")
    return [e for e in ENVIRONMENTS if any(fnmatch(e.name, pattern) for pattern in wanted)]


def _interpreter(version: str) -> Path:
    """Return the first interpreter of this version that answers: a shim of pyenv may stand for a version not switched on."""
    for path in _interpreters(version):
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        answer = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return path
    raise EnvironmentMissingError(f"there is no Python {version} on this machine")


def _interpreters(version: str) -> Iterator[Path]:
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise EnvironmentMissingError(f"{' '.join(command[1:4])} failed: {lines[-1] if lines else done.returncode}")
