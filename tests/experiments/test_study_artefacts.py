"""What a study's trials leave beside their rows, and that a trial can be replayed from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from experiments.study_cases import TEXT, study_in

from causalprune.errors import InvalidArgumentError, RecordError
from causalprune.experiments.networks import build_network
from causalprune.experiments.prepared import filled_in, splits_of
from causalprune.experiments.study import Study
from causalprune.experiments.study_spec import StudySpec, study_cells
from causalprune.experiments.training import evaluate, train
from causalprune.experiments.trial_artefacts import ARTEFACT_KINDS
from causalprune.experiments.weights import load_weights
from causalprune.measures import torch_threads
from causalprune.pruning import Plan, apply, apply_masks, holding, load_masks

KEPT = TEXT[: TEXT.index("blocks")].replace("l1, random", "l1, wt").replace("0.5, ", "")
KEPT += "artefacts: [plan, checkpoint, trace]\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("study"), KEPT)
    study.run(progress=False)
    return study


def fetched(study: Study, trial: int, kind: str) -> Path:
    (found,) = study.artefacts(trial, kind)
    assert found.kind == kind and found.trial == trial
    path = study.artefact_path(found.digest)
    assert path.stat().st_size == found.n_bytes
    return path


def test_every_trial_leaves_what_was_asked_for(finished: Study) -> None:
    frame = finished.frame()
    assert (frame["status"] == "ok").all(), frame["error"].unique()
    assert len(frame) == 4 and len(finished.artefacts()) == 12
    for row in frame.itertuples():
        plan = "masks" if row.method == "wt" else "plan"
        assert [a.kind for a in finished.artefacts(row.trial)] == sorted(
            ["checkpoint", plan, "trace"]
        )
        losses = json.loads(fetched(finished, row.trial, "trace").read_text())["loss"]
        assert len(losses) == row.retrain_epochs == 1 and losses[0] > 0
    assert finished.doctor() == []


@pytest.mark.parametrize("method", ["l1", "wt"])
def test_a_trial_is_replayed_to_the_same_weights_and_accuracy(finished: Study, method: str) -> None:
    row = finished.frame().query("method == @method and ratio == 0.8").iloc[0]
    trial = int(row["trial"])
    config = filled_in(finished.spec.blocks[0])
    splits = splits_of(config)
    network = build_network("lenet5", 10)
    load_weights(network, finished.folder / "blocks" / "0-lenet5" / "checkpoints" / "0.pt")
    masks = None
    if method == "wt":
        masks = load_masks(fetched(finished, trial, "masks"))
        apply_masks(network, masks)
    else:
        network = apply(network.eval(), Plan.load(fetched(finished, trial, "plan")))
    assert evaluate(network, splits.test) == row["accuracy_pruned"]
    with torch_threads(config.threads), holding(network, masks):
        log = train(
            network,
            splits.train,
            epochs=1,
            learning_rate=config.learning_rates()[1],
            batch_size=config.batch_size,
            seed=int(row["seed"]),
        )
    assert evaluate(network, splits.test) == row["accuracy"]
    assert json.loads(fetched(finished, trial, "trace").read_text())["loss"] == list(log.losses)
    state = torch.load(fetched(finished, trial, "checkpoint"), weights_only=True)
    assert state.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


def test_the_estimate_of_the_disk_is_near(finished: Study) -> None:
    (megabytes,) = [float(word) for word, unit in _pairs(finished.plan()[-1]) if unit == "MB"]
    kept = sum(each.n_bytes for each in finished.artefacts())
    trained = (finished.folder / "blocks" / "0-lenet5" / "checkpoints" / "0.pt").stat().st_size
    assert megabytes == pytest.approx((kept + trained) / 1e6, rel=0.3)


def _pairs(line: str) -> list[tuple[str, str]]:
    words = line.split()
    return list(itertools.pairwise(words))


def test_plans_alone_unless_told_otherwise(tmp_path: Path) -> None:
    spec = study_in(tmp_path).spec
    assert spec.artefacts == ("plan",)
    assert "(plan)" in study_in(tmp_path).plan()[-1]
    none = study_in(tmp_path, TEXT + "artefacts: []\n").spec
    # A study of before there were artefacts is one that keeps none.
    assert none.artefacts == () and "artefacts" not in none.to_dict()
    for each in (spec, none):
        assert StudySpec.from_dict(each.to_dict()) == each
    assert ARTEFACT_KINDS == ("plan", "checkpoint", "trace")
    assert len(study_cells(spec)) == 7


@pytest.mark.parametrize("given", ["[plan, plans]", "[plan, plan]", "[3]", "plan"])
def test_other_kinds_are_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"line 13: artefacts: expected .*got"):
        study_in(tmp_path, TEXT.replace("blocks:", f"artefacts: {given}\nblocks:"))


def test_what_is_not_there_is_refused(finished: Study) -> None:
    assert finished.artefacts(kind="plans") == () and finished.artefacts(trial=99) == ()
    with pytest.raises(RecordError, match="no artefact '00'"):
        finished.artefact_path("00")
