"""Finished parts of a score on disk, and what they belong to."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causalprune.errors import RecordError
from causalprune.files import replace_file
from causalprune.scoring.data import Batch
from causalprune.scoring.methods import Job, Method
from causalprune.scoring.outcomes import Outcome
from causalprune.scoring.tally import Subtotal

__all__ = ["ShardFolder", "digest_of", "job_fingerprint"]

SCHEMA = 1


@dataclass(frozen=True)
class ShardFolder:
    """A folder of finished items of one job.

    Attributes
    ----------
    path : Path
    fingerprint : str
        Of the job: weights, data, settings.
    """

    path: Path
    fingerprint: str

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: str, method: str) -> ShardFolder:
        """Make the folder, or go on with it.

        Raises
        ------
        RecordError
            If it belongs to another job.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "job.json"
        if note.exists():
            try:
                found = json.loads(note.read_text(encoding="utf-8"))["fingerprint"]
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f"{note}: expected a job's fingerprint, got {error}") from error
            if found != fingerprint:
                raise RecordError(
                    f"shards: {str(folder)!r} belongs to another job; expected these weights, "
                    f"data and settings ({fingerprint[:12]}), got {str(found)[:12]}; take another "
                    "folder"
                )
        else:
            job = {"schema": SCHEMA, "method": method, "fingerprint": fingerprint}
            replace_file(note, json.dumps(job, indent=2))
        return cls(folder, fingerprint)

    def file(self, batch: int, item: int) -> Path:
        """Return where an item of a batch is kept."""
        return self.path / f"shard-{batch:06d}-{item:04d}.npz"

    def write(self, batch: int, item: int, groups: Mapping[str, Subtotal]) -> None:
        """Keep a finished item; a reader sees the whole of it or nothing."""
        meta = {"fingerprint": self.fingerprint, "groups": list(groups)}
        states = {str(k): group.state().numpy() for k, group in enumerate(groups.values())}
        content = io.BytesIO()
        np.savez(content, meta=np.array(json.dumps(meta)), **states)  # type: ignore[arg-type]
        replace_file(self.file(batch, item), content.getvalue())

    def read(self, batch: int, item: int, groups: Sequence[str]) -> dict[str, Subtotal] | None:
        """Return a finished item, or ``None`` if there is none.

        Raises
        ------
        RecordError
            If it is broken or of another job.
        """
        path = self.file(batch, item)
        if not path.exists():
            return None
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                meta = json.loads(str(archive["meta"]))
                states = [torch.from_numpy(archive[str(k)]) for k in range(len(groups))]
            if meta["fingerprint"] != self.fingerprint or meta["groups"] != list(groups):
                raise RecordError(f"shards: {str(path)!r} is of another job; take another folder")
            return {
                name: Subtotal.of_state(state) for name, state in zip(groups, states, strict=True)
            }
        except (OSError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(f"{path}: expected a finished shard, got {error}") from error


def digest_of(batch: Batch) -> str:
    """Return the SHA-256 of a batch's images and targets, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in (batch.inputs, batch.targets):
        _add(digest, tensor)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor | None) -> None:
    if tensor is None:
        digest.update(b"none")
        return
    digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")


def job_fingerprint(
    method: Method, job: Job, units: str, options: Mapping[str, Any], seen: Sequence[str]
) -> str:
    """Return the SHA-256 over all that decides on the numbers of a shard, in hexadecimal."""
    digest = hashlib.sha256()
    settings = {
        "schema": SCHEMA,
        "torch": torch.__version__,
        "model": f"{type(job.model).__module__}.{type(job.model).__qualname__}",
        "method": method.name,
        "outcome": _outcome_digest(job.outcome),
        "units": units,
        "groups": [(group.name, group.n_units) for group in job.graph.groups],
        "intervention": job.intervention,
        "max_cache_bytes": job.max_cache_bytes,
        "seed": job.seed,
        "options": {name: repr(options[name]) for name in sorted(options)},
        "batches": list(seen),
    }
    digest.update(json.dumps(settings).encode())
    for name, tensor in job.model.state_dict().items():
        digest.update(name.encode())
        _add(digest, tensor if isinstance(tensor, Tensor) else None)
    return digest.hexdigest()


def _outcome_digest(outcome: Outcome) -> str:
    function = outcome.function
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    constants = (getattr(function, "__code__", None), getattr(function, "__defaults__", None))
    return f"{outcome.name} {name} {_described(constants)}"


def _described(value: object) -> str:
    """Return what tells code and constants apart and is the same in every process."""
    if isinstance(value, CodeType):
        return _described((value.co_code, value.co_names, value.co_consts))
    if isinstance(value, tuple):
        return f"({', '.join(_described(part) for part in value)})"
    known = value is None or isinstance(value, (int, float, complex, str, bytes))
    return repr(value) if known else type(value).__name__
