"""Writing a file so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write `content` to a temporary file beside `path`, flush it to disk, and rename it.

    Parameters
    ----------
    path : path-like
        The file; its folder must exist.
    content : bytes or str
        What it shall hold; text is written as UTF-8.

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
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target
