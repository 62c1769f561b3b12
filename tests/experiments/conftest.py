"""Small data that every machine can make, and the real data where they are."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from experiments.store_cases import STUDY, cells

from causalprune.experiments.store import StudyStore


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Write an array as a gzip-compressed IDX file."""

    def write(path: Path, array: np.ndarray, magic: int | None = None) -> Path:
        number = magic if magic is not None else 2048 + array.ndim
        header = struct.pack(f">{1 + array.ndim}I", number, *array.shape)
        with gzip.open(path, "wb") as stream:
            stream.write(header + array.astype(np.uint8).tobytes())
        return path

    return write


@pytest.fixture
def small_mnist(tmp_path: Path, write_idx: Callable[..., Path]) -> Path:
    """A folder laid out like the real files, with 80 + 20 images."""
    return small_idx_files(tmp_path, "MNIST", write_idx)


@pytest.fixture
def small_fashion_mnist(tmp_path: Path, write_idx: Callable[..., Path]) -> Path:
    """The same of FashionMNIST."""
    return small_idx_files(tmp_path, "FashionMNIST", write_idx)


def small_idx_files(folder: Path, name: str, write_idx: Callable[..., Path]) -> Path:
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = generator.integers(0, 256, (count, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real files."""
    folder = os.environ.get("CAUSALPRUNE_DATA")
    if not folder:
        pytest.skip("CAUSALPRUNE_DATA is not set: no real MNIST files to test with")
    if not (Path(folder) / "MNIST" / "raw").is_dir():
        pytest.skip(f"CAUSALPRUNE_DATA ({folder}) holds no MNIST/raw")
    return Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.create(tmp_path / "study", STUDY, cells(6)) as made:
        yield made
