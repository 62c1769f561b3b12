"""Two networks side by side, and the folder that tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ttest_rel
from torch import nn

from causalprune.errors import DataError, InvalidArgumentError, OutputExistsError
from causalprune.experiments.before_after import compare_networks, correct_images, wilson_interval
from causalprune.experiments.pruned_folder import new_folder
from causalprune.measures import interleaved_latency_ms


def _network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(15, width), nn.Dropout(0.9), nn.Linear(width, 3))


def test_sizes_accuracies_and_intervals() -> None:
    wide, narrow = _network(11).train(), _network(5)
    test = torch.randn(97, 3, 5), torch.randint(3, (97,))
    found = compare_networks(wide, narrow, test[0][:1], test, batch_size=33, repeats=3)
    assert (found.before.parameters, found.after.parameters) == (15 * 11 + 11 + 36, 15 * 5 + 5 + 18)
    assert (found.before.macs, found.after.macs) == (18 * 11, 18 * 5)
    assert found.after.bytes == 4 * found.after.parameters
    assert found.after.activation_bytes < found.before.activation_bytes
    assert found.before.latency.repeats == 3 and wide.training
    hits = [correct_images(model, test).numpy() for model in (wide, narrow)]
    for measured, own in zip((found.before, found.after), hits, strict=True):
        share = binomtest(int(own.sum()), 97).proportion_ci(method="wilson")
        assert measured.accuracy is not None
        assert measured.accuracy.value == pytest.approx(own.mean())
        assert (measured.accuracy.low, measured.accuracy.high) == pytest.approx(tuple(share))
    change = ttest_rel(hits[1].astype(float), hits[0].astype(float)).confidence_interval()
    assert found.change is not None
    assert (found.change.low, found.change.high) == pytest.approx(tuple(change))
    assert json.loads(json.dumps(found.as_dict()))["after"]["macs"] == 90


def test_without_test_images_there_is_no_accuracy() -> None:
    found = compare_networks(_network(4), _network(2), torch.zeros(1, 15), repeats=1)
    assert found.change is None and found.before.accuracy is None


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 33), (33, 33), (7, 15), (1, 97)])
def test_wilson_s_interval(hits: int, n: int) -> None:
    share = wilson_interval(hits, n, 0.9)
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert (share.low, share.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert share.low <= share.value <= share.high


def test_numbers_and_images_that_do_not_fit() -> None:
    model = _network(3)
    with pytest.raises(InvalidArgumentError, match="hits"):
        wilson_interval(4, 3)
    with pytest.raises(InvalidArgumentError, match="confidence"):
        compare_networks(model, model, torch.zeros(1, 15), confidence=1.0)
    for test in (
        (torch.zeros(0, 15), torch.zeros(0)),
        (torch.zeros(3, 15), torch.zeros(4)),
        (torch.zeros(3, 15), torch.zeros(3, 3)),
    ):
        with pytest.raises(DataError, match="one class for each image"):
            correct_images(model, test)
    with pytest.raises(InvalidArgumentError, match="at least one network"):
        interleaved_latency_ms([], torch.zeros(1, 15))


def test_networks_are_timed_in_turns() -> None:
    order: list[int] = []
    models = [nn.Linear(4, 4) for _ in range(3)]
    for number, model in enumerate(models):
        model.register_forward_hook(lambda *_, number=number: order.append(number))
    found = interleaved_latency_ms(models, torch.zeros(7, 4), warmup=1, repeats=2)
    assert order == [0, 1, 2] * 3
    assert [latency.batch for latency in found] == [7, 7, 7]
    assert all(np.isfinite(latency.median_ms) for latency in found)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    with pytest.raises(RuntimeError, match="half-way"), new_folder(out) as folder:
        (folder / "plan.json").write_text("{}")
        assert not out.exists()
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
    with new_folder(out) as folder:
        (folder / "plan.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["plan.json"]
    with pytest.raises(OutputExistsError, match="exists"), new_folder(out):
        pass
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "late") as folder:
        (tmp_path / "late").mkdir()  # by another process
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "pruned"]
    with pytest.raises(InvalidArgumentError, match="no such folder"), new_folder(out / "a" / "b"):
        pass
