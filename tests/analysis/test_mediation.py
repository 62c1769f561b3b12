"""What goes through MACs and memory: planted paths, exact mediators, what cannot be parted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from simulated_trials import simulate

from causalprune.analysis.mediation import mediation
from causalprune.analysis.tables import completed_trials

PER_MAC, PER_BYTE = 1e-6, 5e-7


def _planted(
    seed: int, direct: float, *, checkpoints: int = 12, noise: float = 0.02
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = simulate(seed, checkpoints=checkpoints)
    share = frame["method"].map({"path": 0.7, "l1": 0.9, "random": 0.5})
    rows = len(frame)
    frame["macs"] = np.round(416_520 * (1 - frame["ratio"] * share * rng.uniform(0.8, 1, rows)))
    frame["memory_bytes"] = np.round(3e5 * (1 - frame["ratio"] * rng.uniform(0.3, 0.9, rows)))
    answer = 1 + 5 * noise * rng.standard_normal(checkpoints)[frame["checkpoint"]]
    level = rng.normal(0.3, 0.1, checkpoints)[frame["checkpoint"]]
    frame["latency_ms"] = level + answer * (
        PER_MAC * frame["macs"] + PER_BYTE * frame["memory_bytes"]
    )
    frame["latency_ms"] += direct * frame["ratio"] + noise * rng.standard_normal(rows)
    return frame


def _truth(frame: pd.DataFrame, direct: float) -> list[float]:
    both = frame.pivot_table(
        index=["checkpoint", "method"], columns="ratio", values=["macs", "memory_bytes"]
    )
    macs = PER_MAC * float((both["macs"][0.9] - both["macs"][0.0]).mean())
    memory = PER_BYTE * float((both["memory_bytes"][0.9] - both["memory_bytes"][0.0]).mean())
    return [macs + memory + 0.9 * direct, macs + memory, macs, memory, 0.9 * direct]


def _found(frame: pd.DataFrame, **options: object):
    return mediation(completed_trials(frame, ("ratio", "latency_ms")), **options)


def test_without_noise_every_path_is_exact() -> None:
    frame = _planted(1, -0.1, noise=0.0)
    found = _found(frame)
    assert [item.question for item in found] == [
        "in total",
        "through MACs and memory",
        "through MACs",
        "through memory",
        "directly",
    ]
    np.testing.assert_allclose([item.effect for item in found], _truth(frame, -0.1), rtol=1e-7)
    assert found[-1].high - found[-1].low < 1e-6


@pytest.mark.parametrize("direct", [0.0, -0.1])
def test_paths_cover_the_truth(direct: float) -> None:
    hits = []
    for seed in range(700, 725):
        frame = _planted(seed, direct)
        hits.append(
            [
                item.low <= truth <= item.high
                for item, truth in zip(_found(frame, seed=seed), _truth(frame, direct), strict=True)
            ]
        )
    assert np.all(np.mean(hits, axis=0) >= 0.8)


def test_both_mediators_count() -> None:
    frame = _planted(2, 0.0)
    alone = _found(frame, mediators=("macs",))
    assert [item.question for item in alone] == ["in total", "through MACs", "directly"]
    # Left to MACs alone, what goes through memory is taken for direct.
    assert alone[-1].high < 0
    joint = _found(frame)
    assert joint[-1].low < 0 < joint[-1].high
    assert joint[0].effect == pytest.approx(alone[0].effect, rel=0.05)


def test_missing_and_constant_mediators_are_named() -> None:
    frame = _planted(3, 0.0)
    found = _found(frame.assign(memory_bytes=100))
    assert "memory could not be taken in" in found[1].sentence
    (none,) = _found(frame.drop(columns=["macs", "memory_bytes"]))
    assert "no column of MACs and memory" in none.reason


def test_what_cannot_be_parted_is_refused() -> None:
    frame = _planted(4, 0.0)
    frame["macs"] = 1000 - 900 * frame["ratio"]
    (found,) = _found(frame)
    assert "fixes MACs and memory" in found.reason
    frame = _planted(4, 0.0)
    frame["memory_bytes"] = 3 * frame["macs"] + 17
    (found,) = _found(frame)
    assert "move in step" in found.reason


def test_ends_that_no_two_networks_have_are_refused() -> None:
    frame = _planted(5, 0.0)
    (found,) = _found(frame.loc[(frame["ratio"] < 0.9) | (frame["checkpoint"] == 3)])
    assert "1 networks have trials at both 0 and 0.9" in found.reason
    (found,) = _found(frame, contrast=(0.0, 0.95))
    assert "0 networks" in found.reason


def test_same_seed_same_numbers() -> None:
    frame = _planted(6, 0.0, checkpoints=5)
    assert _found(frame, seed=3) == _found(frame, seed=3) != _found(frame, seed=4)
