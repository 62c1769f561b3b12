"""What a latency measurement reports and restores; never how fast anything is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.measures import latency_ms, torch_threads


class Counting(nn.Module):
    """Counts its passes and notes how they were run."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(
            (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        )
        return x


def test_warm_up_and_repeats_run_in_eval_and_inference_mode() -> None:
    model, before = Counting(), torch.get_num_threads()
    timing = latency_ms(model, torch.zeros(6, 2), warmup=2, repeats=3, threads=1)
    assert model.passes == [(False, True, 1)] * 5
    assert (timing.batch, timing.repeats, timing.threads) == (6, 3, 1)
    assert 0 <= timing.q25_ms <= timing.median_ms <= timing.q75_ms
    assert model.training and torch.get_num_threads() == before


def test_threads_come_back_when_the_network_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        latency_ms(nn.Linear(2, 2), torch.zeros(1, 3), threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}])
def test_numbers_out_of_range_are_named(wrong: dict[str, int]) -> None:
    name = next(iter(wrong))
    with pytest.raises(InvalidArgumentError, match=f"{name}: expected at least"):
        latency_ms(nn.Identity(), torch.zeros(1), **wrong)  # type: ignore[arg-type]


def test_none_leaves_threads_alone() -> None:
    with torch_threads(None) as threads:
        assert threads == torch.get_num_threads()
