"""Agreement, divergence and calibration beside sums over images in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.measures.agreement import calibration_error, output_agreement


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (33, 5), (97, 10)])
def test_agreement_by_definition(n: int, k: int) -> None:
    p, q = 2 * torch.randn(n, k), 2 * torch.randn(n, k)
    q[::2] = p[::2] + 0.1
    same, divergence = [], []
    for one, other in zip(p.double().tolist(), q.double().tolist(), strict=True):
        same.append(float(one.index(max(one)) == other.index(max(other))))
        pairs = zip(softmax(one), softmax(other), strict=True)
        divergence.append(sum(a * math.log(a / b) for a, b in pairs))
    found = output_agreement(p, q)
    assert (found.labels.mean, found.labels.standard_error) == pytest.approx(mean_and_error(same))
    got = (found.divergence.mean, found.divergence.standard_error)
    assert got == pytest.approx(mean_and_error(divergence), abs=1e-12)
    assert found.labels.n == n


def test_a_network_agrees_with_itself() -> None:
    logits = torch.randn(15, 4)
    found = output_agreement(logits, logits + 3.0)  # softmax does not see a constant
    assert found.labels.mean == 1.0
    assert found.divergence.mean == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(output_agreement(logits[:1], logits[:1]).labels.standard_error)
    assert "(n = 15)" in str(found.labels)


@pytest.mark.parametrize("n_bins", [1, 4, 15])
@pytest.mark.parametrize("k", [2, 7])
def test_calibration_by_definition(n_bins: int, k: int) -> None:
    logits, targets = 2 * torch.randn(211, k), torch.randint(0, k, (211,))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        chances = softmax(row)
        confidence = max(chances)
        place = next(b for b in range(n_bins) if confidence <= (b + 1) / n_bins + 1e-12)
        bins.setdefault(place, []).append((confidence, chances.index(confidence) == target))
    expected = sum(
        abs(sum(right for _, right in own) - sum(confidence for confidence, _ in own))
        for own in bins.values()
    )
    found = calibration_error(logits, targets, n_bins)
    assert found.value == pytest.approx(expected / 211)
    assert found.value > 0.05
    assert found.bins["n"].tolist() == [len(bins.get(b, ())) for b in range(n_bins)]


def of_confidence(confidence: list[float]) -> Tensor:
    chance = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([chance.log(), (1 - chance).log()], 1)


def test_a_calibrated_network_has_no_error() -> None:
    logits = of_confidence([0.75] * 4)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])).value == pytest.approx(0.0)
    assert calibration_error(logits, torch.tensor([0, 0, 0, 0])).value == pytest.approx(0.25)
    # Over- and underconfidence in different bins do not cancel.
    mixed = of_confidence([0.75, 0.75, 0.55, 0.55])
    found = calibration_error(mixed, torch.tensor([0, 0, 1, 1]))
    assert found.value == pytest.approx((0.25 + 0.55) / 2)


def test_certainty_is_in_the_last_bin() -> None:
    found = calibration_error(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    assert found.value == 1.0
    assert found.bins["n"].tolist() == [0] * 14 + [1]


def test_bad_tensors_are_refused() -> None:
    good, targets = torch.randn(3, 2), torch.tensor([0, 1, 0])
    with pytest.raises(InvalidArgumentError, match=r"q_logits: expected the shape .*\[3, 2\]"):
        output_agreement(good, good[:2])
    with pytest.raises(InvalidArgumentError, match="p_logits: expected a tensor"):
        output_agreement([[1.0]], good)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="p_logits: expected floating logits"):
        output_agreement(good.long(), good)
    with pytest.raises(InvalidArgumentError, match="p_logits: expected floating logits"):
        output_agreement(good[:0], good[:0])
    with pytest.raises(InvalidArgumentError, match="logits: expected finite logits"):
        calibration_error(good / 0, targets)
    with pytest.raises(InvalidArgumentError, match=r"targets: expected class indices \[3\]"):
        calibration_error(good, targets[:2])
    with pytest.raises(InvalidArgumentError, match=r"targets: expected class indices \[3\]"):
        calibration_error(good, targets.double())
    with pytest.raises(DataError, match=r"targets: expected classes in \[0, 2\), got 2"):
        calibration_error(good, targets + 1)
    with pytest.raises(InvalidArgumentError, match="n_bins: expected an integer >= 1, got 0"):
        calibration_error(good, targets, 0)
