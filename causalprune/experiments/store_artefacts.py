"""Files of trials (checkpoints, plans, traces), each under the digest of its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from causalprune.errors import RecordError
from causalprune.files import file_blocks, file_digest, flush_folder, replace_file

__all__ = ["ARTEFACTS", "Artefact", "artefact_file", "files_of_artefacts", "keep_artefact"]

ARTEFACTS = "artefacts"


@dataclass(frozen=True)
class Artefact:
    """A file that a trial left behind.

    Attributes
    ----------
    digest : str
        SHA-256 of its content, in hexadecimal: its name in the store.
    kind : str
        What it is: ``"checkpoint"``, ``"plan"``, ``"trace"`` or another word.
    n_bytes : int
        Its size.
    trial : int or None
        Whose it is; ``None``: of the whole study.
    """

    digest: str
    kind: str
    n_bytes: int
    trial: int | None


def artefact_file(folder: Path, digest: str) -> Path:
    """Return where the content with a digest lies: ``artefacts/ab/cdef...``."""
    return folder / ARTEFACTS / digest[:2] / digest[2:]


def keep_artefact(
    folder: Path, content: bytes | str | os.PathLike[str], kind: str, trial: int | None
) -> Artefact:
    """Put content under its digest, flushed to disk before it bears that name.

    Parameters
    ----------
    folder : Path
        Of the study.
    content : bytes or path-like
        The content, or the file that holds it.
    kind, trial : str, and int or None
        What it is, and whose.

    Returns
    -------
    Artefact
        Not yet in the store's tables. Content that is there already is not written again.

    Raises
    ------
    OSError
        It cannot be read or written; nothing is left behind.
    RecordError
        The file changed while it was read.
    """
    if isinstance(content, bytes):
        digest, size = hashlib.sha256(content).hexdigest(), len(content)
    else:
        digest, size = file_digest(content), os.stat(content).st_size
    target = artefact_file(folder, digest)
    if target.is_file() and target.stat().st_size == size:
        return Artefact(digest, kind, size, trial)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, content if isinstance(content, bytes) else _same(content, digest))
    for above in (target.parent, target.parent.parent, folder):
        flush_folder(above)
    return Artefact(digest, kind, size, trial)


def _same(path: str | os.PathLike[str], digest: str) -> Iterator[bytes]:
    found = hashlib.sha256()
    for block in file_blocks(path):
        found.update(block)
        yield block
    if found.hexdigest() != digest:
        raise RecordError(f"{path}: changed while it was put into the store; put it in again")


def files_of_artefacts(folder: Path) -> dict[str, Path]:
    """List the files in the folder of artefacts by the digest that their place stands for."""
    found = (path for path in sorted((folder / ARTEFACTS).rglob("*")) if path.is_file())
    return {"".join(path.relative_to(folder / ARTEFACTS).parts): path for path in found}
