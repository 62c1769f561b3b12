"""Peak activation memory against sums made by hand."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from causalprune.measures import peak_activation_bytes


def test_input_output_and_rectified_copy_are_alive_together() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    image, maps = 28 * 28 * 4, 6 * 28 * 28 * 4
    assert peak_activation_bytes(model, torch.zeros(1, 1, 28, 28)) == image + 2 * maps


def test_in_place_activation_needs_no_second_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 100), nn.ReLU(inplace=True), nn.Linear(100, 2))
    assert peak_activation_bytes(model, torch.zeros(1, 4)) == 4 * (4 + 100 + 2)


def test_views_add_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Unflatten(1, (3, 25)))
    assert peak_activation_bytes(model, torch.zeros(1, 1, 5, 5)) == 4 * (25 + 75)


def test_a_value_kept_for_a_shortcut_stays_counted() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)

        def forward(self, x: Tensor) -> Tensor:
            kept = self.first(x)
            other: Tensor = self.second(kept)
            return kept + other

    assert peak_activation_bytes(Shortcut(), torch.zeros(1, 10)) == 4 * 40


def test_proportional_to_the_batch_and_the_same_each_time() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 3))
    one = peak_activation_bytes(model, torch.zeros(1, 8))
    assert peak_activation_bytes(model, torch.zeros(7, 8)) == 7 * one
    # Freed by reference counting, not by the collector: a collection must not change it.
    gc.disable()
    try:
        assert peak_activation_bytes(model, torch.zeros(1, 8)) == one
    finally:
        gc.enable()


def test_a_slice_of_a_larger_input_counts_as_itself() -> None:
    model = nn.Linear(4, 4)
    assert peak_activation_bytes(model, torch.zeros(100, 4)[:1]) == 4 * 8
