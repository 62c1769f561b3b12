"""The blocks of a study on disk: who prepares one, and at which step of it.

A block is prepared by one process at a time; the system ends its lock with the process. The step
lies in a file beside the lock, for tables that other processes show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from causalprune.errors import RecordError

__all__ = ["BLOCKS", "preparing", "steps_there", "telling"]

BLOCKS = "blocks"


@contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare a block; the others wait.

    Parameters
    ----------
    folder : Path
        Of the block.

    Raises
    ------
    RecordError
        The system has no file locks.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise RecordError("studies need a system with file locks (fcntl)") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _step(folder).unlink(missing_ok=True)


def telling(folder: Path, step: str) -> None:
    """Say what the preparation of a block is at; a disk that is full is told of elsewhere."""
    with suppress(OSError):
        _step(folder).write_text(step, encoding="utf-8")


def steps_there(folder: Path) -> list[str]:
    """List what processes that prepare blocks of a study are at.

    Parameters
    ----------
    folder : Path
        Of the study's records.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> block = folder / BLOCKS / "0-lenet5"
    >>> with preparing(block):
    ...     telling(block, "training lenet5")
    ...     print(steps_there(folder))
    ['training lenet5']
    >>> telling(block, "of a process that was killed")
    >>> steps_there(folder)
    []
    """
    found: list[str] = []
    for file in sorted((folder / BLOCKS).glob("*.step")):
        # It may be gone by now, or half written.
        with suppress(OSError, UnicodeDecodeError):
            if _is_held(file.with_suffix(".lock")):
                found.append(file.read_text(encoding="utf-8"))
    return [step for step in found if step]


def _is_held(lock: Path) -> bool:
    import fcntl

    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _step(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.step")
