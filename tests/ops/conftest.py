"""What the operator's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from path_effects_layers import ISAS, instruction_set


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle's many small convolutions are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
