"""Every error that causalprune raises on purpose.

Each one also derives from the built-in exception that a caller would expect
(``ValueError``, ``FileExistsError``, ...), so code that knows nothing of this
package still catches it. Messages name the argument, what was expected and
what came.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CapturedByHooksWarning",
    "CausalPruneError",
    "CausalPruneWarning",
    "CheckpointError",
    "ClaimLostError",
    "ClusterError",
    "DataError",
    "DivergedError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "OutputExistsError",
    "ProcessGroupError",
    "RecordError",
    "TargetNotReachedWarning",
    "UnknownNameError",
    "UnsupportedModelError",
    "UntraceableModelError",
]


class CausalPruneError(Exception):
    """Base class of every error raised on purpose by causalprune."""


class InvalidArgumentError(CausalPruneError, ValueError):
    """An argument has the wrong type, shape, range or value."""


class DivergedError(InvalidArgumentError):
    """Training led to weights, a loss or outputs that are infinite or no number."""


class UnknownNameError(InvalidArgumentError):
    """A name is not in a registry; the message lists those that are, and suggests the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        near = get_close_matches(str(name), self.known, n=1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(self.known)}{suggestion}")


class UnsupportedModelError(CausalPruneError, ValueError):
    """The network cannot be captured, scored or pruned as it stands."""


class UntraceableModelError(UnsupportedModelError):
    """The network runs, but no graph of its operators can be had; the message says where."""


class CausalPruneWarning(UserWarning):
    """Base class of every warning given on purpose by causalprune."""


class CapturedByHooksWarning(CausalPruneWarning):
    """The network could not be traced, and less can be done with its units; see the message."""


class TargetNotReachedWarning(CausalPruneWarning):
    """Less was removed than was asked for; the message says how much, and why."""


class DataError(CausalPruneError, ValueError):
    """A data set is missing, broken or does not fit the network."""


class OutputExistsError(CausalPruneError, FileExistsError):
    """An output would overwrite something that is already there."""


class ProcessGroupError(CausalPruneError, RuntimeError):
    """Another process of a distributed job ended or cannot be reached."""


class ClusterError(CausalPruneError, RuntimeError):
    """A cluster does not answer, or its nodes cannot run what they are sent."""


class RecordError(CausalPruneError, ValueError):
    """A record file on disk is incomplete, broken or of another experiment."""


class ClaimLostError(RecordError):
    """A trial is no longer held by the worker that wants to record it; another one has it."""


class CheckpointError(CausalPruneError, RuntimeError):
    """A checkpoint cannot be written, or belongs to another run.

    Attributes
    ----------
    network, trace : object
        What could not be written: the network as it stands and the trace of the run so far;
        ``None`` where nothing was to be written.
    """

    def __init__(self, message: str, network: object = None, trace: object = None) -> None:
        self.network = network
        self.trace = trace
        super().__init__(message)


class MissingDependencyError(CausalPruneError, ImportError):
    """An optional dependency is needed here; the message says which extra installs it."""
