"""Checkpoints of a pruning run: what a killed run needs to go on to the same result.

A folder holds the tensors of the network as it stands (``network-<step>-<SHA-256>.pt``, a
state_dict), the trace (``trace-<step>-<SHA-256>.json``), and ``checkpoint.json``, which names the
two, the arguments of the run and the random state. That last file is replaced after the others
are on disk, so that a reader finds the old checkpoint or the new one, whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causalprune.errors import CheckpointError, RecordError
from causalprune.files import replace_file
from causalprune.pruning.trace import Trace

__all__ = [
    "Checkpoint",
    "check_same_run",
    "described",
    "random_state",
    "read_checkpoint",
    "set_random_state",
    "weights_digest",
    "write_checkpoint",
]

SCHEMA = 1
POINTER = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes
    ----------
    arguments : Mapping of str to JSON value
        What the result depends on; see :func:`check_same_run`.
    trace : Trace
    state : Mapping of str to Tensor
        state_dict of the network as it stands, on the CPU.
    random_state : Mapping of str to JSON value
        See :func:`random_state`.
    """

    arguments: Mapping[str, Any]
    trace: Trace
    state: Mapping[str, Tensor]
    random_state: Mapping[str, Any]


def write_checkpoint(
    folder: str | os.PathLike[str],
    network: nn.Module,
    trace: Trace,
    arguments: Mapping[str, Any],
) -> None:
    """Write a checkpoint; what was there stays whole until the new one is.

    Raises
    ------
    CheckpointError
        If it cannot be written, with the reason; the previous checkpoint is as it was.

    Examples
    --------
    >>> from causalprune.pruning import prune
    >>> model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> small = prune(model, torch.zeros(1, 4), "l1", 0.4, "units", checkpoint="run")
    >>> sorted(path.name.split("-")[0] for path in Path("run").iterdir())
    ['checkpoint.json', 'network', 'trace']
    """
    home, number = Path(folder), len(trace.steps)
    kept = _files_in(home)
    try:
        home.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save({name: t.cpu() for name, t in network.state_dict().items()}, content)
        files = {
            "network": _write(home, f"network-{number}", ".pt", content.getvalue(), kept),
            "trace": _write(home, f"trace-{number}", ".json", trace.to_json().encode(), kept),
        }
        pointer = {
            "schema": SCHEMA,
            "step": number,
            "files": files,
            "arguments": arguments,
            "random_state": random_state(),
        }
        replace_file(home / POINTER, json.dumps(pointer, indent=1) + "\n")
    except OSError as error:
        _remove_others(home, keep=kept.values())
        raise _unwritten(home, number, error, network, trace) from error
    _remove_others(home, keep=files.values())


def _write(home: Path, name: str, ending: str, content: bytes, kept: Mapping[str, str]) -> str:
    """Write a file whose name tells its content; returns the name.

    Nothing that the old checkpoint names is ever overwritten, and what is there already (the
    network of a reverted step) is not written again.
    """
    digest = hashlib.sha256(content).hexdigest()
    for there in kept.values():
        if there.endswith(f"-{digest}{ending}") and (home / there).exists():
            return there
    return replace_file(home / f"{name}-{digest}{ending}", content).name


def _unwritten(
    home: Path, number: int, error: OSError, network: nn.Module, trace: Trace
) -> CheckpointError:
    step = _step_in(home)
    left = f"the checkpoint after step {step} is intact" if step is not None else "there is none"
    return CheckpointError(
        f"checkpoint: step {number} cannot be written to {home}: {error}; {left}. Make room and "
        "call again with the same arguments to go on; this error has the step's `network` and "
        "`trace`",
        network,
        trace,
    )


def _step_in(home: Path) -> int | None:
    try:
        return int(json.loads((home / POINTER).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _files_in(home: Path) -> Mapping[str, str]:
    """Files that the checkpoint in `home` names, if there is one."""
    try:
        pointer = json.loads((home / POINTER).read_text(encoding="utf-8"))
        return {str(kind): str(name) for kind, name in pointer["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remove_others(home: Path, keep: Iterable[str]) -> None:
    """Remove older files, and those of a checkpoint that was never finished."""
    wanted = set(keep)
    for path in home.glob("*"):
        if _OWN.fullmatch(path.name) and path.name not in wanted:
            path.unlink(missing_ok=True)


_OWN = re.compile(r"(network-\d+-[0-9a-f]{64}\.pt|trace-\d+-[0-9a-f]{64}\.json)")


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """Read the checkpoint in a folder; ``None`` where there is none.

    Raises
    ------
    RecordError
        If a file is missing, broken, of another schema, or not the one that was written.
    """
    home = Path(folder)
    pointer_path = home / POINTER
    if not pointer_path.exists():
        return None
    try:
        pointer = json.loads(pointer_path.read_text(encoding="utf-8"))
        if pointer["schema"] != SCHEMA:
            raise RecordError(
                f"{pointer_path}: expected schema {SCHEMA}, got {pointer['schema']!r}"
            )
        contents = {kind: _read(home / pointer["files"][kind]) for kind in ("network", "trace")}
        return Checkpoint(
            arguments=pointer["arguments"],
            trace=Trace.from_json(contents["trace"].decode()),
            state=_tensors(contents["network"]),
            random_state=pointer["random_state"],
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{home}: expected a checkpoint, got {error!r}") from error


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() not in path.name:
        raise RecordError(f"{path}: expected the file that was written, got another content")
    return content


def _tensors(content: bytes) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(
        io.BytesIO(content), weights_only=True, map_location="cpu"
    )
    return state


def check_same_run(
    folder: str | os.PathLike[str], before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to go on with a run of other arguments, another network or other data.

    Raises
    ------
    CheckpointError
        Naming everything that differs.

    Examples
    --------
    >>> try:
    ...     check_same_run("run", {"ratio": 0.4, "seed": 0}, {"ratio": 0.5, "seed": 0})
    ... except CheckpointError as error:
    ...     print(str(error).split("; ")[0])
    checkpoint: run holds a run with other arguments: ratio was 0.4, is 0.5
    """
    differing = [
        f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"checkpoint: {folder} holds a run with other arguments: {'; '.join(differing)}; "
            "give another folder, or the same arguments"
        )


def _short(value: Any) -> str:
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 60 else text[:20] + "..."


def described(value: Any) -> Any:
    """Return `value` as JSON that is the same in every process.

    Functions become their names, tensors and arrays the SHA-256 of their contents, dataclasses
    their fields; of other objects no more than their text without addresses is known.

    Examples
    --------
    >>> described({"steps": 3, "outcome": nn.functional.relu})
    {'outcome': 'torch.nn.functional.relu', 'steps': 3}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if not isinstance(value, float) or np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): described(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [described(item) for item in items]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"is": type(value).__qualname__, **described(fields)}
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        return f"{array.dtype}{list(array.shape)}:{hashlib.sha256(array.tobytes()).hexdigest()}"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        module = getattr(value, "__module__", None)
        return f"{module}.{name}" if module else str(name)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of parameters and buffers.

    Examples
    --------
    >>> weights_digest(nn.Linear(2, 3)) == weights_digest(nn.Linear(2, 3))
    False
    """
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def random_state() -> dict[str, Any]:
    """Return the state of the generators that training draws from: torch, numpy, Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": _hex(torch.get_rng_state()),
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), cached],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [_hex(each) for each in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to what :func:`random_state` returned.

    Examples
    --------
    >>> before = random_state()
    >>> first = torch.rand(2), random.random(), np.random.rand()
    >>> set_random_state(json.loads(json.dumps(before)))
    >>> second = torch.rand(2), random.random(), np.random.rand()
    >>> torch.equal(first[0], second[0]) and first[1:] == second[1:]
    True
    """
    torch.set_rng_state(_unhex(state["torch"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_unhex(each) for each in state["cuda"]])


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()
