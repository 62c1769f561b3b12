"""What the operator's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from path_effects_layers import ISAS, instruction_set


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param
