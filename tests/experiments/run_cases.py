"""What the tests of runs share."""

from __future__ import annotations

from causalprune.experiments import RunConfig

SMALL = RunConfig(
    methods=("path", "random"),
    ratios=(0.0, 0.5, 0.9),
    checkpoints=2,
    epochs=2,
    retrain_epochs=1,
    calibration=40,
    train_limit=340,
    test_limit=120,
    latency_repeats=2,
    latency_batch=2,
    latency_batches=(7, 3),
    device="cpu",
)
