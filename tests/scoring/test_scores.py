"""Intervals, categories, outcomes, registries, files, and what score() leaves alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networks
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    RecordError,
    UnknownNameError,
    UnsupportedModelError,
)
from causalprune.files import replace_file
from causalprune.scoring import (
    METHODS,
    OUTCOMES,
    MethodResult,
    Scores,
    UnitScores,
    fingerprint,
    register_method,
    register_outcome,
    score,
)
from causalprune.scoring.intervals import PairedMean, student_t_quantile

X, Y = networks.images(30), networks.targets(30)


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [(0.975, 1, 12.706), (0.95, 2, 2.920), (0.975, 10, 2.228), (0.995, 30, 2.750)],
)
def test_student_t_quantile(probability: float, degrees: int, published: float) -> None:
    assert student_t_quantile(probability, degrees) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.9, 0)])
def test_student_t_quantile_range(probability: float, degrees: int) -> None:
    with pytest.raises(InvalidArgumentError):
        student_t_quantile(probability, degrees)


def test_paired_mean_over_batches_far_from_zero() -> None:
    effects = 1e6 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    total = PairedMean(3)
    for part in effects.split([1, 7, 42]):
        total.update(part)
    torch.testing.assert_close(total.mean, effects.mean(0))
    torch.testing.assert_close(total.standard_error, effects.std(0) / 50**0.5, rtol=1e-7, atol=0)


def test_intervals_are_paired_t_intervals() -> None:
    model = networks.lenet()
    frame = score(model, (X, Y), "ablation", confidence=0.9).frame
    half = frame["se"] * stats.t.ppf(0.95, 29)
    np.testing.assert_allclose(frame["low"], frame["effect"] - half, rtol=1e-9)
    np.testing.assert_allclose(frame["high"], frame["effect"] + half, rtol=1e-9)
    assert (frame["n"] == 30).all() and frame["cost"].between(0, 30, inclusive="neither").all()


def test_categories_follow_the_better_side_of_the_outcome() -> None:
    model = networks.vgg()
    loss = score(model, (X, Y), "ablation", "loss").frame
    assert {"critical", "detrimental"} <= set(loss["category"])
    assert ((loss["category"] == "critical") == (loss["low"] > 0)).all()
    assert ((loss["category"] == "detrimental") == (loss["high"] < 0)).all()
    logit = score(model, (X, Y), "ablation", "logit").frame
    assert ((logit["category"] == "critical") == (logit["high"] < 0)).all()
    assert ((logit["category"] == "detrimental") == (logit["low"] > 0)).all()
    own = score(model, (X, Y), "ablation", lambda logits, targets: logits.sum(1)).frame
    assert (own["category"] == "").all() and own["low"].notna().all()


def test_one_image_has_no_interval() -> None:
    frame = score(networks.lenet(), (X[:1], Y[:1]), "ablation").frame
    assert frame["effect"].notna().all() and frame["low"].isna().all()
    assert (frame["category"] == "").all()


def test_builtin_outcomes() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 5.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    values = {
        name: outcome.function(logits, targets)
        for name, outcome in OUTCOMES.items()
        if not outcome.compares
    }
    torch.testing.assert_close(values["loss"], F.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(values["probability"], (-values["loss"]).exp())
    assert values["logit"].tolist() == [2.0, 3.0]
    assert values["margin"].tolist() == [1.0, -2.0]
    assert values["correctness"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("method", ["path", "taylor"])
def test_correctness_has_no_gradient(method: str) -> None:
    with pytest.raises(InvalidArgumentError, match="differentiable"):
        score(networks.lenet(), (X, Y), method, "correctness")
    frame = score(networks.lenet(), (X, Y), "ablation", "correctness").frame
    assert frame["effect"].abs().max() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"confidence": 1.0},
        {"confidence": "high"},
        {"batch_size": 0},
        {"budget": 0},
        {"budget": "all"},
        {"budget": True},
        {"max_images": 0},
        {"max_images": 2.5},
        {"max_cache_bytes": -1},
        {"units": "channels"},
        {"intervention": "one"},
        {"estimator": "gaussian"},
        {"seed": "one"},
        {"outcome": 3},
    ],
)
def test_bad_arguments(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        score(networks.lenet(), (X, Y), **options)  # type: ignore[arg-type]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UnknownNameError, match="ablation"):
        score(networks.lenet(), (X, Y), "magic")
    with pytest.raises(UnknownNameError, match="margin"):
        score(networks.lenet(), (X, Y), outcome="magic")


def test_models_without_removable_units() -> None:
    with pytest.raises(UnsupportedModelError, match="output"):
        score(nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), (X, Y))
    with pytest.raises(InvalidArgumentError, match="model"):
        score(F.relu, (X, Y))  # type: ignore[arg-type]


def test_batch_statistics_in_eval_mode_are_refused() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()
    )
    model.append(nn.Linear(3 * 14 * 14, 3))
    with pytest.raises(UnsupportedModelError, match="'1'"):
        score(model, (X, Y))


@pytest.mark.parametrize("method", ["ablation", "path", "taylor"])
def test_bad_input_is_named_by_every_kind_of_method(method: str) -> None:
    model = networks.vgg().train()
    for targets in (Y + 1, Y - 1, Y.float(), Y[:4], Y[:, None]):
        with pytest.raises(DataError, match=r"^data: expected"):
            score(model, (X, targets), method)
    with pytest.raises(DataError, match="at least one image"):
        score(model, DataLoader(TensorDataset(X[:0], Y[:0])), method)
    with torch.no_grad():
        model[4].weight[1, 2, 0, 0] = torch.nan
    with pytest.raises(DataError, match="'loss' is not finite on the whole network"):
        score(model, (X, Y), method)
    assert all(module.training for module in model.modules())
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(UnsupportedModelError, match="'1' normalises with batch statistics"):
        score(model, (X, Y), method)


def test_a_network_that_is_not_finite_without_a_unit_names_it() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(256, 2), nn.Linear(2, 3, bias=False)
            self.head = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(1 + F.relu(self.first(x.flatten(1)))).square().log())

    model = networks.settle(Logarithm())
    with torch.no_grad():
        model.second.weight[:, 0] = 0.0  # the second unit alone keeps the logarithm finite
    with pytest.raises(DataError, match="not finite after removing unit 1 of layer 'first'"):
        score(model, (X, Y), "ablation")


def test_outcome_that_is_not_finite_names_the_unit() -> None:
    def brittle(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        whole = torch.isclose(logits, reference).all(1)
        return torch.where(whole, 0.0, torch.nan)

    model = networks.mlp()
    with torch.no_grad():
        reference = model(X).double()
    with pytest.raises(DataError, match="unit 0 of layer '1'"):
        score(model, (X, Y), "ablation", brittle)


def test_outcome_of_the_wrong_shape() -> None:
    with pytest.raises(InvalidArgumentError, match="one value per image"):
        score(networks.mlp(), (X, Y), "ablation", lambda logits, targets: logits.mean())


def test_model_is_left_as_it_was() -> None:
    model = networks.vgg().train()
    model[5].eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for method in METHODS:
        torch.manual_seed(7)
        score(model, (X, Y), method)
        assert torch.initial_seed() == 7 and torch.rand(1) == torch.rand(
            1, generator=torch.Generator().manual_seed(7)
        )
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(DataError):
        score(model, (X, Y.float()))
    assert [module.training for module in model.modules()] == modes


def test_train_and_eval_mode_score_the_same() -> None:
    model = networks.vgg()
    expected = score(model, (X, Y)).frame
    pd.testing.assert_frame_equal(score(model.train(), (X, Y)).frame, expected)


@pytest.mark.parametrize("method", ["path", "l1"])
def test_save_and_load(method: str, tmp_path: Path) -> None:
    scores = score(networks.depthwise(), (X, Y), method)
    path = scores.save(tmp_path / "scores.npz")
    again = Scores.load(path)
    pd.testing.assert_frame_equal(again.frame, scores.frame)
    for name in ("method", "outcome", "confidence", "fingerprint", "example_shape", "notes"):
        assert getattr(again, name) == getattr(scores, name)
    assert repr(again) == repr(scores)
    assert list(tmp_path.iterdir()) == [path]


def test_file_layout_is_readable_without_this_package(tmp_path: Path) -> None:
    score(networks.lenet(), (X, Y), "ablation").save(tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz", allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"]))
        assert archive["meta"].ndim == 0 and archive["layer"].dtype.kind == "U"
        assert archive["unit"].dtype == np.int64 and archive["effect"].dtype == np.float64
    assert meta["schema"] == 1 and meta["example_shape"] == [1, 1, 16, 16]


def test_tables_and_a_fixed_outcome_are_saved(tmp_path: Path) -> None:
    columns = {
        "group": ["0", "ünit"],
        "class": torch.tensor([1, -2]),
        "xi": np.array([0.25, np.nan], dtype=np.float32),
        "exact": [True, False],
    }

    @register_method("tabled", needs_labels=False)
    def tabled(job, *, extra=None):  # type: ignore[no-untyped-def]
        units = {g.name: UnitScores(torch.ones(g.n_units)) for g in job.graph.groups}
        tables = {"per class": columns, "empty": {"group": [], "n": torch.zeros(0)}}
        tables |= {} if extra is None else {"extra": extra}
        return MethodResult(units, tables=tables, outcome=OUTCOMES["probability"])

    try:
        scores = score(networks.mlp(), (X, Y), "tabled", "loss")
        assert scores.outcome == "probability"
        assert scores.tables["per class"]["group"].tolist() == ["0", "ünit"]
        again = Scores.load(scores.save(tmp_path / "scores.npz"))
        assert list(again.tables) == ["per class", "empty"]
        for name, table in scores.tables.items():
            pd.testing.assert_frame_equal(again.tables[name], table)
        for bad in ({"a": [[1]]}, {"a": [None]}, {"a": [1], "b": [1, 2]}):
            with pytest.raises(InvalidArgumentError, match="extra"):
                score(networks.mlp(), (X, Y), "tabled", extra=bad)
    finally:
        METHODS.pop("tabled")


def test_files_without_tables_still_load(tmp_path: Path) -> None:
    path = score(networks.mlp(), X, "l1").save(tmp_path / "scores.npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays["meta"]))
    del meta["tables"]
    np.savez(path, **(arrays | {"meta": np.array(json.dumps(meta))}))
    assert Scores.load(path).tables == {}


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nothing"):
        Scores.load(tmp_path / "nothing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(RecordError, match="text"):
        Scores.load(tmp_path / "text.npz")
    whole = score(networks.lenet(), X, "l1").save(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="cut"):
        Scores.load(tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(RecordError, match="other"):
        Scores.load(tmp_path / "other.npz")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = replace_file(tmp_path / "kept", b"old")

    def fail(*paths: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_top_and_repr() -> None:
    scores = score(networks.lenet(), (X, Y), "ablation")
    top = scores.top(3)
    assert top["importance"].tolist() == sorted(scores.frame["importance"])[:-4:-1]
    assert "28 units" in repr(scores) and "30 images" in repr(scores)
    assert scores.notes == ("fc3 left alone: feeds the model's output",)


@pytest.mark.parametrize("method", ["ablation", "l1"])
def test_plot(method: str) -> None:
    figure = score(networks.lenet(), (X, Y), method).plot()
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["conv1", "conv2", "fc1", "fc2"]


def test_scores_of_no_outcome_name_none() -> None:
    shown = {m: score(networks.mlp(), (X, Y), m) for m in ("l1", "mint", "snip", "cexcnn")}
    assert {m: s.outcome for m, s in shown.items()} == {
        "l1": "", "mint": "", "snip": "loss", "cexcnn": "correctness"
    }  # fmt: skip
    assert "outcome" not in repr(shown["l1"]) and "outcome='loss'" in repr(shown["snip"])


def test_fingerprint_is_of_the_structure() -> None:
    first, second = networks.lenet(), networks.settle(networks.LeNet(), seed=5)
    assert fingerprint(first) == fingerprint(second) != fingerprint(networks.mlp())


def test_path_cost_is_spread_over_the_units() -> None:
    frame = score(networks.lenet(), (X, Y)).frame
    assert math.isclose(frame["cost"].sum(), 4 * 30)


def test_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = networks.lenet()
    shown = score(model, (X, Y), "ablation", progress=True).frame
    pd.testing.assert_frame_equal(shown, score(model, (X, Y), "ablation").frame)
    assert "exact ablation" in capsys.readouterr().out


def test_registered_method_and_outcome() -> None:
    @register_outcome("largest", higher_is_better=True, needs_labels=False)
    def largest(logits: torch.Tensor, targets: object) -> torch.Tensor:
        return logits.amax(1)

    @register_method("index", needs_data=False, needs_labels=False)
    def index(job):  # type: ignore[no-untyped-def]
        return {g.name: UnitScores(torch.arange(g.n_units)) for g in job.graph.groups}

    try:
        frame = score(networks.mlp(), X, "index").frame
        assert frame["importance"].tolist() == [*range(7), *range(5)]
        assert (score(networks.mlp(), X, "ablation", "largest").frame["category"] != "").all()
        with pytest.raises(InvalidArgumentError, match="index"):
            register_method("index")(index)
        with pytest.raises(InvalidArgumentError, match="largest"):
            register_outcome("largest")(largest)
    finally:
        METHODS.pop("index"), OUTCOMES.pop("largest")


def test_registered_method_is_held_to_its_contract() -> None:
    register_method("short", needs_data=False, needs_labels=False)(
        lambda job: {g.name: UnitScores(torch.ones(1)) for g in job.graph.groups}
    )
    try:
        with pytest.raises(InvalidArgumentError, match="short"):
            score(networks.mlp(), X, "short")
    finally:
        METHODS.pop("short")
