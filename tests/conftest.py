"""What every test shares: where real data is, and a torchvision that imports everywhere."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# torchvision's CUDA wheel beside a CPU-only torch fails to import because its operators are not
# there. Declaring the two schemas it asks for is enough for models, transforms and data sets.
_LIBRARIES = []
try:
    importlib.import_module("torchvision")
except (ImportError, RuntimeError) as error:
    if "torchvision::nms" in str(error):
        _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
        _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(_LIBRARY)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in an empty folder: nothing is littered, and what a test starts imports the
    installed package, not the sources beside it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of tests are small: threads cost them more than they give, most of all on a busy
    machine. Tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data, or a skip with the reason."""
    root = os.environ.get("CAUSALPRUNE_DATA")
    if not root:
        pytest.skip("real data: set CAUSALPRUNE_DATA to the folder that holds it")
    if not Path(root).is_dir():
        pytest.skip(f"real data: CAUSALPRUNE_DATA={root} is no folder")
    return Path(root)
