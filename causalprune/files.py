"""Writing a file so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["file_blocks", "file_digest", "flush_folder", "replace_file"]


def file_blocks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield a file's content in blocks of at most one MiB.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.
    """
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            yield block


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's content, in hexadecimal.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.

    Examples
    --------
    >>> file_digest(replace_file("kept.txt", ""))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for block in file_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def flush_folder(path: str | os.PathLike[str]) -> None:
    """Write a folder's entries to disk, so that a file renamed into it outlives a power cut.

    Raises
    ------
    OSError
        There is no such folder, or it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: str | os.PathLike[str], content: bytes | str | Iterable[bytes]) -> Path:
    """Write `content` to a temporary file beside `path`, flush it to disk, and rename it.

    Parameters
    ----------
    path : path-like
        The file; its folder must exist.
    content : bytes, str or iterable of bytes
        What it shall hold; text is written as UTF-8, blocks one after the other.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written; `path` is then as it was.

    Examples
    --------
    >>> replace_file("kept.txt", "new").read_bytes()
    b'new'
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as stream:
            if isinstance(content, str):
                stream.write(content.encode())
            elif isinstance(content, bytes):
                stream.write(content)
            else:
                stream.writelines(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target
