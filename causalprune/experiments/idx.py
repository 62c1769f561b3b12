"""Reader of the IDX format in which the MNIST files come."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from causalprune.errors import DataError

__all__ = ["read_idx_images", "read_idx_labels"]

_LABELS_MAGIC = 2049  # unsigned bytes, one dimension
_IMAGES_MAGIC = 2051  # unsigned bytes, three dimensions
_LARGEST_CONTENT = 1 << 30


def read_idx_images(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed IDX file of images.

    Parameters
    ----------
    path : Path
        For instance ``train-images-idx3-ubyte.gz``.

    Returns
    -------
    array
        ``[N, H, W]`` uint8.

    Raises
    ------
    DataError
        The file is missing, truncated, not gzip, of another format, or says something else
        about its size than what it holds.
    """
    return _read(path, _IMAGES_MAGIC, 3)


def read_idx_labels(path: Path) -> NDArray[np.uint8]:
    """Read a gzip-compressed IDX file of labels.

    Parameters
    ----------
    path : Path
        For instance ``train-labels-idx1-ubyte.gz``.

    Returns
    -------
    array
        ``[N]`` uint8.

    Raises
    ------
    DataError
        As for ``read_idx_images``.
    """
    return _read(path, _LABELS_MAGIC, 1)


def _read(path: Path, magic: int, dimensions: int) -> NDArray[np.uint8]:
    try:
        with gzip.open(path, "rb") as stream:
            return _parse(stream, path, magic, dimensions)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; fetch it again") from error
    except EOFError as error:
        raise DataError(f"{path}: the file is truncated; fetch it again") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({error}); fetch it again") from error


def _parse(stream: Any, path: Path, magic: int, dimensions: int) -> NDArray[np.uint8]:
    header_bytes = 4 * (1 + dimensions)
    header = stream.read(header_bytes)
    if len(header) < header_bytes:
        raise DataError(f"{path}: the file is truncated inside its header; fetch it again")
    found, *shape = struct.unpack(f">{1 + dimensions}I", header)
    if found != magic:
        raise DataError(
            f"{path}: magic number {found}, expected {magic}; not the IDX file its name says"
        )
    expected = math.prod(shape)
    # The reader makes room for what it is told to read, so a wild header is refused first.
    if not 0 < expected <= _LARGEST_CONTENT:
        raise DataError(f"{path}: impossible shape {tuple(shape)} in the header; fetch it again")
    # One byte more than expected tells a file that is too long from one that fits.
    content = stream.read(expected + 1)
    if len(content) != expected:
        size = f"{len(content)} bytes" if len(content) < expected else "more bytes"
        raise DataError(
            f"{path}: {size} of content, expected {expected} for shape {tuple(shape)}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
