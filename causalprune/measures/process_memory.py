"""Peak memory of a process that loads a network and runs it, and of a GPU that does."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.measures.size import parameter_bytes, require_tensor

__all__ = ["PeakMemory", "peak_gpu_bytes", "peak_process_bytes", "start_measuring_process"]

_PEAK_IS_SET_BACK = Path("/proc/self/clear_refs")
_SCRIPT = Path(__file__).with_name("process_memory_server.py")


@dataclass(frozen=True)
class PeakMemory:
    """A peak of memory, or why there is none.

    Attributes
    ----------
    bytes : int or None
    reason : str or None
        Why `bytes` is None.
    """

    bytes: int | None = None
    reason: str | None = None


def peak_process_bytes(
    model: nn.Module, example: Tensor, *, threads: int = 1, timeout_s: float = 300.0
) -> PeakMemory:
    """Measure by how much a network, loaded and run once, raises a process's resident memory.

    The process is new for every measurement: a child of one that has torch (and the modules of
    the network's classes) imported and has nothing else in it. Before, it loads and runs a tiny
    network, so that torch's code and set-up, tens of megabytes, do not count. What counts are
    parameters, buffers, the batch, activations, the workspace inside operators, and memory that
    the allocator keeps. The system counts in pages and, for each thread, to about 250 kB.

    Parameters
    ----------
    model : nn.Module
        The network, on the CPU; it is pickled, and run in evaluation mode without gradients.
    example : Tensor
        Input ``[N, ...]`` on the CPU. Its shape and type matter; ones take its place.
    threads : int
        torch's intra-operator threads in that process.
    timeout_s : float
        Longest wait for the answer, in seconds.

    Returns
    -------
    PeakMemory
        None with a reason where the system does not tell, where the network or the batch is on
        another device, cannot be pickled or loaded elsewhere, and where running it fails.

    Raises
    ------
    InvalidArgumentError
        ``example`` is no tensor, ``threads`` is below 1, or ``timeout_s`` not positive.

    Examples
    --------
    >>> from torch import nn
    >>> peak = peak_process_bytes(nn.Linear(1000, 10_000), torch.zeros(1, 1000))
    >>> peak.reason is not None or peak.bytes >= 4 * 10_000 * 1000
    True
    """
    require_tensor(example)
    if threads < 1:
        raise InvalidArgumentError(f"threads: expected at least 1, got {threads}")
    if not timeout_s > 0:
        raise InvalidArgumentError(f"timeout_s: expected a positive number, got {timeout_s}")
    devices = {tensor.device.type for tensor in (example, *model.parameters(), *model.buffers())}
    if devices != {"cpu"}:
        return PeakMemory(reason=f"the network runs on {', '.join(sorted(devices))}, not the CPU")
    if (reason := _cannot_measure()) is not None:
        return PeakMemory(reason=reason)
    with tempfile.TemporaryDirectory(prefix="causalprune-") as folder:
        file = Path(folder) / "network.pt"
        try:
            torch.save(model, file)
        except Exception as error:  # what a module holds can fail to be pickled in any way
            return PeakMemory(reason=f"the network cannot be pickled ({_one_line(error)})")
        request = {
            "path": str(file),
            "shape": list(example.shape),
            "dtype": str(example.dtype).removeprefix("torch."),
            "threads": threads,
            "modules": _modules_of(model),
            "paths": _paths(),
        }
        answer = _ask(request, timeout_s)
    return PeakMemory(answer.get("bytes"), answer.get("reason"))


def peak_gpu_bytes(model: nn.Module, example: Tensor) -> PeakMemory:
    """Measure the most GPU memory that a network holds during a forward pass.

    Parameters
    ----------
    model : nn.Module
        The network; it runs once, in evaluation mode without gradients.
    example : Tensor
        Input ``[N, ...]`` on the network's device.

    Returns
    -------
    PeakMemory
        Parameters, buffers, the batch and, at their peak, activations and workspace, as torch's
        allocator counts them (``torch.cuda.max_memory_allocated``), in blocks of 512 bytes. What
        else lies on the GPU does not count. None with a reason elsewhere than on a CUDA device.

    Raises
    ------
    InvalidArgumentError
        ``example`` is no tensor.

    Examples
    --------
    >>> peak_gpu_bytes(nn.Linear(3, 2), torch.zeros(1, 3)).reason
    'the network runs on cpu, not a CUDA device'
    """
    require_tensor(example)
    device = example.device
    if device.type != "cuda":
        return PeakMemory(reason=f"the network runs on {device.type}, not a CUDA device")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    # A copy, so that a batch cut from more images counts as itself only.
    with evaluating(model), torch.inference_mode():
        model(example.clone())
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return PeakMemory(parameter_bytes(model) + peak)


def start_measuring_process() -> None:
    """Start the process that `peak_process_bytes` asks, so that no first call waits for it.

    It imports torch meanwhile. Nothing happens where it runs already, or where nothing could be
    measured.
    """
    if _cannot_measure() is None:
        with _LOCK, contextlib.suppress(OSError):
            _running()


class _Server:
    """The other process: lines of JSON to its input, lines of JSON from its output."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        # A session of its own: an interrupt at the terminal is for the one that asks, and what it
        # has forked ends with it. One thread, because it forks.
        self.process = subprocess.Popen(
            [sys.executable, str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        self.send(_paths())

    def send(self, value: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next line's value; None where the process ended instead.

        Raises
        ------
        TimeoutError
            No answer in time.
        """
        assert self.process.stdout is not None
        descriptor, text = self.process.stdout.fileno(), b""
        deadline = time.monotonic() + timeout_s
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(descriptor, 1 << 16)
            if not more:
                return None
            text += more
        return dict(json.loads(text))

    def end(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.wait()


_LOCK = threading.Lock()
_servers: list[_Server] = []


def _ask(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    with _LOCK:
        try:
            server = _running()
            server.send(request)
            answer = server.receive(timeout_s)
        except TimeoutError:
            reason = f"no answer within {timeout_s:g} s"
        except OSError as error:
            reason = f"no process to measure in ({_one_line(error)})"
        except BaseException:
            # Interrupted: an answer that comes later must not be taken for another's.
            _end()
            raise
        else:
            if answer is not None:
                return answer
            reason = "the process to measure in ended"
        _end()
        return {"reason": reason}


def _running() -> _Server:
    if _servers and _servers[0].owner != os.getpid():
        _servers.clear()  # of the process that this one was forked from
    if not _servers:
        _servers.append(_Server())
    return _servers[0]


@atexit.register
def _end() -> None:
    for server in _servers:
        if server.owner == os.getpid():
            server.end()
    _servers.clear()


def _cannot_measure() -> str | None:
    if not sys.platform.startswith("linux"):
        return f"the peak of a process can be set back on Linux only, this is {platform.system()}"
    if not _PEAK_IS_SET_BACK.exists():
        return f"the kernel has no {_PEAK_IS_SET_BACK}"
    if not sys.executable:
        return "there is no Python interpreter to start"
    return None


def _paths() -> list[str]:
    return [str(Path(entry or ".").absolute()) for entry in sys.path]


def _modules_of(model: nn.Module) -> list[str]:
    names = {type(module).__module__ for module in model.modules()}
    return sorted(name for name in names if name.partition(".")[0] not in ("torch", "__main__"))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
