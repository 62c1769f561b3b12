"""Simulated trial tables with a known truth, and a simulated run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RATIOS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
METHODS = ("path", "l1", "random")
UNPRUNED_PARAMETERS = 61_706
UNPRUNED_MACS = 416_520

# Loss at a ratio for a method of average quality; steep at the end, as real curves are.
CURVE = 0.12


def true_loss(ratio: float, size: float = CURVE) -> float:
    """Expected accuracy loss of a trial, averaged over methods and checkpoints."""
    return size * ratio**3


def simulate(
    seed: int = 0,
    *,
    checkpoints: int = 6,
    methods: tuple[str, ...] = METHODS,
    ratios: tuple[float, ...] = RATIOS,
    size: float = CURVE,
    noise: float = 0.004,
    checkpoint_noise: float = 0.05,
) -> pd.DataFrame:
    """One row a trial; `size` 0 plants no effect at all.

    Each checkpoint has its own level and (by `checkpoint_noise`, a fraction) its own
    response, so that rows of one checkpoint are dependent.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for checkpoint in range(checkpoints):
        level = 0.01 * rng.standard_normal()
        response = 1 + checkpoint_noise * rng.standard_normal()
        before = 0.97 + 0.005 * rng.standard_normal()
        for position, method in enumerate(methods):
            quality = 1 + 0.3 * (position - (len(methods) - 1) / 2)
            for ratio in ratios:
                loss = true_loss(ratio, size) * response * quality
                loss += 0.3 * level + noise * rng.standard_normal()
                rows.append(_row(rng, checkpoint, method, ratio, before, loss))
    frame = pd.DataFrame(rows)
    frame.insert(0, "trial", range(len(frame)))
    frame.insert(1, "order", rng.permutation(len(frame)))
    return frame.sort_values("order", ignore_index=True)


def _row(
    rng: np.random.Generator,
    checkpoint: int,
    method: str,
    ratio: float,
    before: float,
    loss: float,
) -> dict[str, object]:
    achieved = ratio + 0.01 * float(rng.standard_normal()) if ratio else 0.0
    parameters = round(UNPRUNED_PARAMETERS * (1 - achieved))
    macs = round(UNPRUNED_MACS * (1 - 0.8 * achieved + 0.02 * float(rng.standard_normal())))
    activation = round(20_000 * (1 - 0.5 * achieved))
    latency = 0.25 + 0.4 * macs / UNPRUNED_MACS + 0.02 * abs(float(rng.standard_normal()))
    return {
        "checkpoint": checkpoint,
        "seed": checkpoint,
        "architecture": "lenet5",
        "dataset": "digits",
        "method": method,
        "assignment": "every method and ratio per checkpoint, order randomised",
        "assignment_probability": 1 / 21,
        "ratio": ratio,
        "achieved_ratio": 1 - parameters / UNPRUNED_PARAMETERS,
        "achieved_ratio_macs": 1 - macs / UNPRUNED_MACS,
        "ratio_of": "parameters",
        "kept_units": json.dumps({"conv1": 6, "conv2": max(1, round(16 * (1 - ratio)))}),
        "parameters": parameters,
        "macs": macs,
        "parameter_bytes": 4 * parameters,
        "peak_activation_bytes": activation,
        "memory_bytes": 4 * parameters + activation,
        "latency_ms": latency,
        "latency_q25_ms": 0.95 * latency,
        "latency_q75_ms": 1.08 * latency,
        "latency_batch": 64,
        "threads": 1,
        "retrain_epochs": 2,
        "shift": "none",
        "accuracy_before": before,
        "accuracy_pruned": max(0.1, before - 4 * max(loss, 0.0) - 0.3 * ratio**2),
        "accuracy": before - loss,
        "accuracy_loss": loss,
        "n_test": 540,
        "split": "test-540-0badcafe",
        "machine": "machine-a",
        "cpu_percent": 55.0,
        "memory_percent": 31.0,
        "swap_percent": 0.0,
        "cpu_frequency_mhz": 2600.0,
        "context_switches": 120,
        "instructions": None,
        "cycles": None,
        "branch_misses": None,
        "l1d_misses": None,
        "llc_misses": None,
        "counters_reason": "hardware events are not available (ENOENT)",
        "gpu_memory_bytes": None,
        "gpu_load_percent": None,
        "gpu_power_watts": None,
        "gpu_reason": "no NVIDIA driver",
        "seconds": 1.4,
        "status": "ok",
        "error": None,
        "output_difference": 2e-7,
    }


def drawn(seed: int, *, checkpoints: int = 12, draws: int = 12, **options: float) -> pd.DataFrame:
    """Draw method and ratio anew for every trial of a network, as a randomised study does."""
    rng = np.random.default_rng(seed)
    rows = []
    for checkpoint, table in simulate(seed, checkpoints=checkpoints, **options).groupby(
        "checkpoint"
    ):
        rows.append(table.iloc[rng.integers(len(table), size=draws)].assign(checkpoint=checkpoint))
    return pd.concat(rows, ignore_index=True)


def confounded(seed: int = 0, *, checkpoints: int = 30) -> pd.DataFrame:
    """An imported table without assignment: a hidden cause drives ratio and loss.

    The ratio does nothing; every bit of association is confounding.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for checkpoint in range(checkpoints):
        for method in ("path", "l1"):
            for _ in range(4):
                hidden = rng.random()
                ratio = float(np.clip(0.9 * hidden + 0.1 * rng.random(), 0, 0.95))
                loss = 0.1 * hidden + 0.003 * rng.standard_normal()
                rows.append(_row(rng, checkpoint, method, round(ratio, 3), 0.97, loss))
    frame = pd.DataFrame(rows).drop(columns=["assignment", "assignment_probability"])
    frame.insert(0, "trial", range(len(frame)))
    return frame


def confounded_by_quality(seed: int = 0, *, checkpoints: int = 40) -> pd.DataFrame:
    """An imported table: better networks were pruned harder and would have lost less anyway.

    The ratio does nothing; adjusting for ``accuracy_before`` would repair the estimate.
    """
    rng = np.random.default_rng(seed)
    table = simulate(
        seed, checkpoints=checkpoints, methods=("path",), ratios=(0.0, 0.4, 0.8), size=0
    )
    quality = rng.standard_normal(checkpoints)[table["checkpoint"]]
    table["accuracy_before"] = 0.9 + 0.02 * quality
    table["ratio"] = np.clip(0.5 + 0.2 * quality + 0.1 * rng.standard_normal(len(table)), 0, 0.95)
    table["accuracy_loss"] = 0.03 - 0.01 * quality + 0.004 * rng.standard_normal(len(table))
    return table.assign(assignment="observed")


def write_run(folder: Path, table: pd.DataFrame, *, seed: int = 0) -> Path:
    """Write the files a run leaves behind, scores included."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "trials.csv", index=False)
    config = {
        "network": "lenet5",
        "data": "digits",
        "methods": sorted(set(table["method"])),
        "ratios": sorted(set(table["ratio"])),
        "seed": seed,
        "checkpoints": int(table["checkpoint"].nunique()),
        "epochs": 8,
        "retrain_epochs": 2,
        "of": "parameters",
    }
    machine = {"processor": "Example CPU", "cores": 2, "memory_bytes": 8 << 30, "torch": "2.13.0"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "machine.json").write_text(json.dumps(machine))
    (folder / "checks.json").write_text(json.dumps([{"checkpoint": 0, "spearman": 0.98}]))
    (folder / "scores").mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for checkpoint in sorted(set(table["checkpoint"])):
        units = [(name, k) for name, n in LAYERS for k in range(n)]
        effect = np.abs(rng.gamma(0.6, 0.05, len(units))) - 0.004
        for method in ("path", "ablation"):
            shown = effect * (1 + 0.1 * rng.standard_normal(len(units)))
            write_scores(folder / "scores" / f"{checkpoint}-{method}.npz", units, shown, method)
    return folder


LAYERS = (("conv1", 6), ("conv2", 16), ("fc1", 120), ("fc2", 84))


def add_tables(path: Path, tables: dict[str, dict[str, Any]], notes: Sequence[str] = ()) -> None:
    """Add tables and notes to a score file, in the layout of the scoring room."""
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    for name, table in tables.items():
        arrays |= {f"tables/{name}/{key}": np.array(values) for key, values in table.items()}
    columns = {name: list(table) for name, table in tables.items()}
    arrays["meta"] = np.array(json.dumps(meta | {"tables": columns, "notes": list(notes)}))
    np.savez(path, **arrays)


def write_scores(path: Path, units: list[tuple[str, int]], effect: np.ndarray, method: str) -> None:
    """Write per-unit scores in the layout of the scoring room."""
    error = 0.003 + 0.08 * np.abs(effect)
    low, high = effect - 2 * error, effect + 2 * error
    category = np.where(low > 0, "critical", np.where(high < 0, "detrimental", "neutral"))
    meta = {
        "method": method,
        "outcome": "loss",
        "confidence": 0.95,
        "fingerprint": "0" * 64,
        "example_shape": [1, 1, 28, 28],
        "schema": 1,
    }
    count = len(units)
    np.savez(
        path,
        layer=np.array([name for name, _ in units]),
        unit=np.array([k for _, k in units], dtype=np.int64),
        kind=np.array(["filter" if n.startswith("conv") else "hidden" for n, _ in units]),
        effect=effect,
        se=error,
        low=low,
        high=high,
        importance=np.abs(effect),
        category=category,
        n=np.full(count, 256, dtype=np.int64),
        cost=np.full(count, 1.0),
        group=np.array([name for name, _ in units]),
        meta=np.array(json.dumps(meta)),
    )
