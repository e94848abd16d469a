"""Every exception and warning that fxprune raises on purpose.

All errors derive from :class:`FxpruneError`. Where the public API mirrors ``torch.nn.utils.prune``, the error is also of
the builtin type that torch raises there, so that code written for torch keeps catching it.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping


class FxpruneError(Exception):
    """Base class of all errors raised by fxprune.

    ``nodes`` has for each graph node that is in the way why it is; kept whole, it no longer is. Usually there are none.
    """

    def __init__(self, *args: object, nodes: Mapping[str, str] | None = None) -> None:
        super().__init__(*args)
        self.nodes = dict(nodes or {})


class CaptureError(FxpruneError, RuntimeError):
    """A model could not be turned into a graph."""


class InputError(CaptureError, TypeError):
    """The example inputs do not fit the model's ``forward``."""


class HookError(CaptureError):
    """The model carries hooks, which a graph cannot keep."""


class LoweringError(FxpruneError, NotImplementedError):
    """A leaf module has no functional form, so its parameters cannot be masked one by one."""


class PruningError(FxpruneError):
    """Base class of the errors of the pruning API."""


class PruningValueError(PruningError, ValueError):
    """An argument has a value out of range, or a parameter is not in the state that the call needs."""


class PruningTypeError(PruningError, TypeError):
    """An argument or a parameter has the wrong type."""


class PruningAssertionError(PruningError, AssertionError):
    """A mask or importance tensor has the wrong shape."""


class PruningIndexError(PruningError, IndexError):
    """A dimension is out of range."""


class PruningAttributeError(PruningError, AttributeError):
    """The graph has no parameter of the given name."""


class UnknownParameterError(PruningAttributeError, PruningValueError):
    """The graph has no parameter of the given name; torch raises either type, depending on the function."""


class PruningRuntimeError(PruningError, RuntimeError):
    """A pruning method failed for another reason; the cause is chained."""


class AnalysisError(FxpruneError, RuntimeError):
    """The dependencies of a graph could not be worked out."""


class AnalysisValueError(AnalysisError, ValueError):
    """An argument has a value that the analysis cannot use."""


class RuleError(AnalysisError):
    """A rule does not fit the operator that it is registered for, or an operator has one already."""


class PlanError(FxpruneError, ValueError):
    """No plan can be made of what was asked for, or a plan does not fit the graph."""


class ShrinkError(FxpruneError, RuntimeError):
    """A graph could not be made smaller; it is as it was."""


class VerificationError(FxpruneError, AssertionError):
    """A graph does not compute what the graph that it was made from computes."""


class ExportError(FxpruneError, RuntimeError):
    """A graph could not be exported."""


class CaptureWarning(UserWarning):
    """The graph is right as captured, but keeps less freedom than the model had."""


class PruneWarning(UserWarning):
    """A model was left as large as it was, or nearly so, or a part of what was asked for could not be kept."""


class ExportWarning(UserWarning):
    """The exported artefact is right, but keeps less freedom than the graph had."""


def in_short(error: Exception, lines: int = 1) -> str:
    """Return an error as one line: its type and the first lines of its text that are not empty."""
    if isinstance(error, RecursionError):
        limit = sys.getrecursionlimit()
        return f"RecursionError: calls go deeper than Python's limit of {limit}; sys.setrecursionlimit raises it"
    text = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(text[:lines])}" if text else type(error).__name__


@contextlib.contextmanager
def as_pruning_errors(context: str) -> Iterator[None]:
    """Raise errors of torch as the :class:`PruningError` of the same builtin type, with ``context`` before their texts."""
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:
        ours = (PruningValueError, PruningTypeError, PruningAssertionError, PruningIndexError, PruningAttributeError)
        mirrored: type[PruningError] = next(
            (each for each in ours if isinstance(error, each.__bases__[1])), PruningRuntimeError
        )
        raise mirrored(f"{context}: {error}") from error
