"""The trace of a run: what it keeps, on disk and as a picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch

from causalprune.errors import RecordError
from causalprune.pruning import Footprint, Removal, Step, Trace, plan
from causalprune.pruning.trace_figure import kept_fractions
from causalprune.scoring import score

X = networks.images(6, seed=3)


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Three steps: one kept, one reverted, one retrained."""
    model = networks.mlp()
    decided = plan(model, score(model, X, "random", seed=1), 0.4, "units")
    whole = decided.before
    gone = [(g, u) for g, units in decided.remove.items() for u in units]
    steps = (
        Step(
            "kept",
            tuple(Removal(g, u, 0.5, -0.25, -math.inf, math.inf, "detrimental") for g, u in gone),
            decided.after,
            0.75,
            "held-out accuracy 0.7500 is not below 0.7000",
            seconds=1.5,
        ),
        Step(
            "reverted",
            (Removal("3", 4, 0.125, category="neutral"), Removal("1", 6, 0.25, category="neutral")),
            Footprint(9, whole.macs // 3, 9, 9),
            0.25,
            "held-out accuracy",
            ("3",),
            {"1": 0.75, "3": 0.25},
        ),
        Step("retrained", (), decided.after, 0.875),
    )
    return Trace("ablation", "loss", "progressive", "none", decided, 0.1, 0.8, steps, "all frozen")


def test_a_trace_comes_back_from_its_json(trace: Trace, tmp_path: Path) -> None:
    back = Trace.load(trace.save(tmp_path / "trace.json"))
    # NaN is no number that equals itself, so the two are compared as text.
    assert back.to_json() == trace.to_json()
    assert replace(back, steps=()) == replace(trace, steps=())
    assert back.steps[1].removed[0].importance == 0.125 and math.isnan(back.steps[1].removed[0].low)
    assert back.steps[0].removed[0].low == -math.inf
    assert back.frozen == ("3",) and back.steps[1].parts == {"1": 0.75, "3": 0.25}
    json.loads(trace.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda text: text[:-30], "trace: expected the JSON of a trace"),
        (lambda text: text.replace('"schema": 1', '"schema": 7', 1), "expected schema 1, got 7"),
        (lambda text: text.replace('"verdict"', '"verdicts"', 1), "verdicts"),
        (lambda text: "[]", "expected the JSON of a trace"),
    ],
)
def test_what_is_no_trace_is_refused(trace: Trace, broken, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        Trace.from_json(broken(trace.to_json()))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.json: expected a trace"):
        Trace.load(tmp_path / "none.json")


def test_frames(trace: Trace) -> None:
    n_kept = len(trace.steps[0].removed)
    frame, table = trace.frame, trace.table
    assert frame["step"].tolist() == [0] * n_kept + [1, 1]
    assert frame["verdict"].tolist() == ["kept"] * n_kept + ["reverted"] * 2
    assert frame["category"].iloc[-1] == "neutral" and frame["effect"].iloc[0] == -0.25
    assert table["accuracy"].tolist() == [0.75, 0.25, 0.875]
    assert table["units"].tolist() == [n_kept, 2, 0] and table["frozen"].iloc[1] == "3"
    assert table["macs"].iloc[0] == trace.plan.after.macs
    empty = replace(trace, steps=())
    assert len(empty.frame) == len(empty.table) == 0
    assert list(empty.frame.columns) == list(frame.columns)


def test_kept_fractions_follow_the_kept_steps(trace: Trace) -> None:
    fractions = kept_fractions(trace)
    groups = [row.group for row in trace.plan.table]
    final = [row.kept / row.units for row in trace.plan.table]
    assert fractions.shape == (len(groups), 4)
    np.testing.assert_allclose(fractions[:, 0], 1)
    for column in (1, 2, 3):  # the reverted step and the training remove nothing
        np.testing.assert_allclose(fractions[:, column], final)


def test_the_picture_shows_every_step(trace: Trace, tmp_path: Path) -> None:
    figure = trace.plot(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    above, layers = figure.axes[:2]
    points = {tuple(np.round(c.get_offsets()[0], 6)) for c in above.collections}
    gone = [100 * (1 - step.footprint.macs / trace.plan.before.macs) for step in trace.steps]
    expected = {(round(x, 6), 100 * s.accuracy) for x, s in zip(gone, trace.steps, strict=True)}
    assert points == expected
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert {"unpruned", "guard", "reverted", "retrained"} <= set(labels)
    assert "removed, mostly detrimental" in labels
    assert layers.images[0].get_array().shape == (2, 4)
    mark = layers.collections[0].get_offsets()[0].tolist()
    assert mark == [2.0, [row.group for row in trace.plan.table].index("3")]


@pytest.mark.parametrize("kept", [True, False])
def test_a_picture_without_accuracies(trace: Trace, kept: bool) -> None:
    steps = tuple(replace(step, accuracy=None) for step in trace.steps) if kept else ()
    figure = replace(trace, steps=steps, accuracy=None, stopped="").plot()
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    whole, after = trace.plan.before, trace.plan.after
    assert lines["MACs"][-1] == pytest.approx(100 * after.macs / whole.macs if kept else 100)
    assert len(lines["parameters"]) == (3 if kept else 1)


def test_a_trace_draws_nothing_from_the_global_generator(trace: Trace) -> None:
    before = torch.get_rng_state()
    trace.plot()
    assert torch.equal(before, torch.get_rng_state())
