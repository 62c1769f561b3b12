"""Connecting to a Ray cluster: who answers there, and what its nodes offer."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causalprune.errors import ClusterError, InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["TaskSize", "cluster_offers_gpus", "connected", "slots_of", "unmet"]

_ANSWER_SECONDS = 8.0
# Both Ray's head and its client server speak gRPC, hence HTTP/2: they answer these two frames
# with settings of their own at once, and nothing else that listens at a port does.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4


@dataclass(frozen=True)
class TaskSize:
    """What a task occupies of a node.

    Attributes
    ----------
    cpus, gpus : int
    """

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPU" if self.gpus else "")


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Yield Ray, connected; what this process had connected before stays so.

    Parameters
    ----------
    address : str, optional
        ``"host:port"``, ``"ray://host:port"`` or ``"auto"``. Default: the Ray that is connected,
        ``RAY_ADDRESS``, or one of this machine that ends with the block.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    InvalidArgumentError
        The address has another form, or Ray is connected to another one.
    ClusterError
        Nothing answers at the address, or it is no Ray of this version.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "executor 'ray' needs Ray: pip install 'causalprune[cluster]'"
        ) from error
    if ray.is_initialized():
        _check_same(ray, address)
        yield ray
        return
    chosen = address if address is not None else os.environ.get("RAY_ADDRESS") or "local"
    if chosen not in ("local", "auto"):
        _check_answers(chosen)
    _start(ray, chosen)
    try:
        yield ray
    finally:
        ray.shutdown()


def slots_of(nodes: list[dict[str, Any]], size: TaskSize) -> int:
    """Return how many tasks of a size run at once on the nodes of ``ray.nodes()``.

    Examples
    --------
    >>> node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    >>> slots_of([node, node], TaskSize(3, 0)), slots_of([node, node], TaskSize(3, 1))
    (4, 2)
    """
    return sum(_fitting(node, size) for node in nodes if node["Alive"])


def unmet(nodes: list[dict[str, Any]], size: TaskSize) -> str:
    """Say what the nodes of ``ray.nodes()`` offer instead of a task's size; empty if one fits.

    Examples
    --------
    >>> unmet([{"Alive": True, "Resources": {"CPU": 2.0}}], TaskSize(3, 0))
    'no node has 3 CPUs; the nodes have: 2 CPUs'
    """
    if slots_of(nodes, size):
        return ""
    offers = ", ".join(
        str(TaskSize(int(_of(node, "CPU")), int(_of(node, "GPU"))))
        for node in nodes
        if node["Alive"]
    )
    return f"no node has {size}; the nodes have: {offers or 'none is alive'}"


def cluster_offers_gpus(nodes: list[dict[str, Any]]) -> bool:
    """Whether any living node of ``ray.nodes()`` has a GPU."""
    return any(_of(node, "GPU") >= 1 for node in nodes if node["Alive"])


def _of(node: dict[str, Any], resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))


def _fitting(node: dict[str, Any], size: TaskSize) -> int:
    by_cpus = int(_of(node, "CPU") // size.cpus)
    return min(by_cpus, int(_of(node, "GPU") // size.gpus)) if size.gpus else by_cpus


def _check_same(ray: ModuleType, address: str | None) -> None:
    if address is None:
        return
    current = ray.get_runtime_context().gcs_address
    if address != current:
        raise InvalidArgumentError(
            f"address: Ray is connected to {current!r} in this process, got {address!r}; leave "
            "the address out, or call ray.shutdown() first"
        )


def _check_answers(address: str) -> None:
    found = re.fullmatch(r"(?:ray://)?(\[[^\]]+\]|[^:/\[\]]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise InvalidArgumentError(
            f"address: expected 'host:port', 'ray://host:port' or 'auto', got {address!r}"
        )
    try:
        with socket.create_connection(
            (found[1].strip("[]"), int(found[2])), timeout=_ANSWER_SECONDS
        ) as connection:
            if os.environ.get("RAY_USE_TLS") in (None, "", "0"):
                connection.sendall(_GREETING)
                answer = connection.recv(4)
                if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
                    raise ClusterError(f"address: what answers at {address!r} is not Ray")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(
            f"address: no Ray answers at {address!r} ({reason}); is the cluster running "
            "(ray start --head), and the port open from here?"
        ) from error


def _start(ray: ModuleType, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options["include_dashboard"] = False
    try:
        with _quiet():
            ray.init(address=address, **options)
    except ImportError as error:  # ray:// without grpcio
        raise MissingDependencyError(
            f"address: {address!r} needs Ray's client: pip install 'ray[client]'"
        ) from error
    except Exception as error:  # Ray raises anything from ConnectionError to RuntimeError
        reason = " ".join(str(error).split())
        raise ClusterError(f"address: cannot use Ray at {address!r}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from reporting usage of a cluster that we start, and from warning of plans."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ[name] = before or "0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if before is None:
            del os.environ[name]
