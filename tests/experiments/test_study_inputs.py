"""Networks of libraries, image sizes and weights in studies; what is refused before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from causalprune.errors import DataError, InvalidArgumentError, RecordError, UnknownNameError
from causalprune.experiments import RunConfig, build_network, run_experiment
from causalprune.experiments.prepared import splits_of
from causalprune.experiments.store import StudyStore
from causalprune.experiments.study import Study
from causalprune.experiments.weights import save_weights, sha256_of

TEXT = """\
network: lenet300
data: digits
methods: [l1]
ratios: [0.0, 0.5]
checkpoints: 1
epochs: 1
retrain_epochs: 0
calibration: 20
train_limit: 100
test_limit: 50
latency_repeats: 1
latency_batch: 1
device: cpu
check_by_ablation: false
"""


def study_in(folder: Path, *lines: str, text: str = TEXT) -> Study:
    keys = {line.partition(":")[0] for line in lines}
    kept = [line for line in text.splitlines() if line.partition(":")[0] not in keys]
    file = folder / "small.yaml"
    file.write_text("\n".join([*kept, *lines, ""]))
    return Study.from_file(file)


def saved(path: Path, network: str, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_weights(build_network(network, seed=seed), path)
    return path


@pytest.mark.parametrize(
    ("network", "size"), [("squeezenet1_1", 33), ("timm:resnet10t", 32), ("mlp", None)]
)
def test_networks_beyond_the_reference_ones(tmp_path: Path, network: str, size: int | None) -> None:
    study = study_in(tmp_path, f"network: {network}", f"image_size: {size or 'null'}")
    frame = study.run(progress=False)
    assert (frame["status"] == "ok").all(), frame["error"].unique()
    full = "torchvision:squeezenet1_1" if network == "squeezenet1_1" else network
    assert set(frame["architecture"]) == {full}
    assert frame.set_index("ratio")["achieved_ratio"][0.5] == pytest.approx(0.5, abs=0.03)
    assert (frame["output_difference"] < 1e-5).all()
    (block,) = (study.folder / "blocks").glob("0-*/config.json")
    assert json.loads(block.read_text())["network"] == full and ":" not in block.parent.name
    scores = [file.name for file in (block.parent / "scores").iterdir()]
    assert scores == ["0-l1.npz"]  # without the check no exact ablation


def test_a_library_s_standard_is_what_its_weights_were_trained_with() -> None:
    config = RunConfig(network="resnet18", image_size=16, train_limit=60, calibration=20)
    splits = splits_of(config)
    assert splits.train[0].shape == (40, 3, 16, 16)
    assert (splits.mean, splits.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert splits_of(RunConfig(train_limit=60, calibration=20)).mean != splits.mean


def test_the_same_network_by_two_names_is_one_block(tmp_path: Path) -> None:
    names = ("network: resnet18", "network: torchvision:resnet18")
    with pytest.raises(InvalidArgumentError, match="together once"):
        study_in(tmp_path, "blocks:", *(f"- {{{name}}}" for name in names))
    with pytest.raises(UnknownNameError, match="resnet18"):
        study_in(tmp_path, "network: torchvision:resnet_18")


def test_an_image_size_that_the_network_does_not_take(tmp_path: Path) -> None:
    study = study_in(tmp_path, "network: torchvision:squeezenet1_1", "image_size: 8")
    message = r"image_size: network 'torchvision:squeezenet1_1' .* 8 x 8 \(its own: 224 x 224\)"
    for start in (study.run, study.plan):
        with pytest.raises(InvalidArgumentError, match=message):
            start()
    assert not study.folder.exists()
    config = RunConfig(network="lenet5", image_size=20, train_limit=100, calibration=20)
    with pytest.raises(InvalidArgumentError, match="'lenet5' does not take images of 20 x 20"):
        run_experiment(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_weights_take_the_place_of_training(tmp_path: Path) -> None:
    file = saved(tmp_path / "given" / "0.pt", "lenet300")
    study = study_in(tmp_path, f"weights: {file}")
    assert "read from" in "\n".join(study.plan())
    frame = study.run(progress=False, limit=1)
    with StudyStore.open(study.folder) as store:
        assert store.study["weights_sha256"] == {"0": {"0": sha256_of(file)}}
    copy = torch.load(study.folder / "blocks/0-lenet300/checkpoints/0.pt", weights_only=True)
    expected = build_network("lenet300", seed=0).state_dict()
    assert all(torch.equal(copy[name], expected[name]) for name in expected)
    saved(file, "lenet300", seed=1)  # another file under the same name
    with pytest.raises(RecordError, match=r"another study: weights_sha256\.0\.0 "):
        Study.open(study.folder).run(progress=False)
    assert len(study.frame()) == len(frame) == 1
    saved(file, "lenet300")
    assert len(Study.open(study.folder).run(progress=False)) == 2


def test_a_folder_of_weights_for_one_of_two_blocks(tmp_path: Path) -> None:
    for number in (0, 1):
        saved(tmp_path / "given" / f"{number}.pt", "lenet300", seed=number)
    lines = ("checkpoints: 2", "blocks:", "- {network: mlp, ratios: [0.5]}")
    study = study_in(tmp_path, *lines, f"- {{network: lenet300, weights: {tmp_path / 'given'}}}")
    frame = study.run(progress=False)
    assert (frame["status"] == "ok").all() and len(frame) == 6
    digests = json.loads((study.folder / "blocks/1-lenet300/config.json").read_text())
    assert set(digests["weights_sha256"]) == {"0", "1"}
    one_file = study_in(tmp_path, "checkpoints: 2", f"weights: {tmp_path / 'given/0.pt'}")
    with pytest.raises(InvalidArgumentError, match="one file is one checkpoint, but 2"):
        one_file.plan()


def _missing(folder: Path) -> None:
    (folder / "1.pt").unlink()


def _of_another_network(folder: Path) -> None:
    saved(folder / "1.pt", "mlp")


def _broken(folder: Path) -> None:
    (folder / "1.pt").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_missing, ("no such file",)),
        (_of_another_network, ("fc1.weight has shape (500, 784), expected (300, 784)",)),
        (_broken, ("not readable as weights",)),
    ],
)
def test_weights_that_do_not_fit_end_the_study_before_it_begins(  # type: ignore[no-untyped-def]
    tmp_path: Path, damage, words: tuple[str, ...]
) -> None:
    for number in (0, 1):
        saved(tmp_path / "given" / f"{number}.pt", "lenet300", seed=number)
    damage(tmp_path / "given")
    study = study_in(tmp_path, "checkpoints: 2", f"weights: {tmp_path / 'given'}")
    with pytest.raises(DataError) as caught:
        study.run(progress=False)
    for word in (*words, "'lenet300'", "checkpoint 1", str(tmp_path / "given" / "1.pt")):
        assert word in str(caught.value)
    assert not study.folder.exists()


def test_published_weights_of_a_cifar_resnet(data_root: Path, tmp_path: Path) -> None:
    file = data_root / "weights" / "resnet20-12fca82f.th"
    lines = ("network: resnet20", "data: cifar-subset", "ratios: [0.0]", f"weights: {file}")
    frame = study_in(tmp_path, *lines, f"data_root: {data_root}").run(progress=False)
    assert frame["status"].tolist() == ["ok"] and frame["accuracy_before"].iloc[0] > 0.8


@pytest.mark.parametrize("data", ["mnist", "fashion-mnist", "cifar10", "cifar-subset"])
def test_data_without_files_end_the_study_before_it_begins(tmp_path: Path, data: str) -> None:
    (tmp_path / "empty").mkdir()
    lines = ("blocks:", "- {network: mlp}", f"- {{data: {data}, data_root: empty}}")
    study = study_in(tmp_path, *lines)
    with pytest.raises(DataError, match="'empty"):
        study.run(progress=False)
    assert not study.folder.exists()


def test_data_that_went_missing_leave_the_study_as_it_was(
    tmp_path: Path, small_mnist: Path
) -> None:
    lines = ("data: mnist", f"data_root: {small_mnist}", "train_limit: 60", "test_limit: 10")
    study = study_in(tmp_path, *lines)
    assert len(study.run(progress=False, limit=1)) == 1
    (small_mnist / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-labels"):
        study.run(progress=False)
    status = study.status()
    assert (status.ok, status.failed, status.running, status.queued) == (1, 0, 0, 1)
    assert study.doctor() == []
