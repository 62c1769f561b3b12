"""A process that has torch at hand and forks a child for every measurement of peak memory.

:mod:`causalprune.measures.process_memory` runs this file as a script. Requests come as lines of
JSON, after a first line with the paths of modules; answers go the same way. The process ends when
its input does, and so with the one that started it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PROC = Path("/proc/self")


def main() -> None:
    """Answer requests until the input ends."""
    # Modules must not be looked for in the folder of this script. What they print must not get
    # among the answers.
    sys.path[:] = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch  # noqa: F401  (every child has it)

    for line in sys.stdin:
        request = json.loads(line)
        sys.path += [path for path in request.pop("paths") if path not in sys.path]
        for module in request["modules"]:
            # Here rather than in the child, so that it happens once. An error comes again there.
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        answers.write(json.dumps(_in_a_child(request)) + "\n")
        answers.flush()


def _in_a_child(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(_answer(request)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as source:
        text = source.read()
    _, status = os.waitpid(child, 0)
    if text:
        return dict(json.loads(text))
    return {"reason": f"the measuring process ended early ({os.waitstatus_to_exitcode(status)})"}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"bytes": _peak_bytes(**request)}
    except BaseException as error:  # whatever it is, the one who asks shall learn of it
        text = " ".join(str(error).split())
        return {"reason": f"{type(error).__name__}: {text}"[:1000]}


def _peak_bytes(path: str, shape: list[int], dtype: str, threads: int, modules: list[str]) -> int:
    import torch

    torch.set_num_threads(threads)
    _use_torch()
    before = _resident_bytes_as_peak()
    model = torch.load(path, map_location="cpu", weights_only=False).eval()
    # Not zeros: the system gives memory to those only when somebody writes.
    images = torch.ones(shape, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        model(images)
    return _peak() - before


def _use_torch() -> None:
    """Load and run a tiny network, so that torch's own code and set-up do not count."""
    import torch
    from torch import nn

    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    stream = io.BytesIO()
    torch.save(nn.Sequential(*layers, nn.Linear(8 * 9, 4)), stream)
    stream.seek(0)
    model = torch.load(stream, weights_only=False).eval()
    with torch.inference_mode():
        model(torch.ones(2, 3, 8, 8))


def _resident_bytes_as_peak() -> int:
    """Make the peak of resident memory what is resident now, and return it."""
    (_PROC / "clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    # Not getrusage: its peak is not set back.
    status = (_PROC / "status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
