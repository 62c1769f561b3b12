"""Networks by name, images in parts: what pruning is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from causalprune.errors import (
    DataError,
    InvalidArgumentError,
    MissingDependencyError,
    UnknownNameError,
)
from causalprune.experiments import build_network, load_data
from causalprune.experiments.cifar_resnets import CIFAR_DEPTHS, cifar_resnet
from causalprune.experiments.image_parts import ImageParts, TrainOn, image_parts
from causalprune.experiments.library_networks import library_network
from causalprune.experiments.model_specs import (
    NetworkSource,
    images_from,
    model_from,
    network_source,
)
from causalprune.measures import count_macs, count_parameters
from causalprune.pruning.retraining import SgdRecipe

# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_cifar_resnets_have_the_published_size(depth: int, parameters: int) -> None:
    model = build_network(f"resnet{depth}", seed=0).eval()
    assert count_parameters(model) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_all_cifar_depths_are_registered_and_others_are_refused() -> None:
    for depth in CIFAR_DEPTHS:
        assert network_source(f"resnet{depth}").input_shape == (3, 32, 32)
    assert count_macs(cifar_resnet(8), torch.zeros(1, 3, 32, 32)) < 20_000_000
    for depth in (2, 21, 51):
        with pytest.raises(InvalidArgumentError, match=r"6n \+ 2"):
            cifar_resnet(depth)


@pytest.mark.parametrize(("name", "correct"), [("20-12fca82f", 932), ("32-d509ac18", 944)])
def test_published_weights_give_the_published_accuracy(
    data_root: Path, name: str, correct: int
) -> None:
    model = model_from(f"resnet{name[:2]}", data_root / "weights" / f"resnet{name}.th").eval()
    parts = image_parts("cifar-subset", network_source("resnet20"), root=data_root)
    assert parts.test is not None
    images, labels = parts.test
    with torch.inference_mode():
        hits = (model(images[:200]).argmax(1) == labels[:200]).sum().item()
    assert len(labels) == 1017
    # Of 1,017: 91.64 and 92.82 %; the first 200 tell a wrong normalisation just as well.
    assert abs(hits / 200 - correct / 1017) < 0.05


def test_a_bare_name_is_torchvision_s_and_a_prefix_says_which() -> None:
    pytest.importorskip("torchvision.models")
    pytest.importorskip("timm")
    bare, ours, theirs = (library_network(n) for n in ("vgg11", "torchvision:vgg11", "timm:vgg11"))
    assert bare is not None and ours is not None and theirs is not None
    assert (bare.name, theirs.name) == ("torchvision:vgg11", "timm:vgg11")
    assert library_network("vit_tiny_patch16_224") is not None
    assert library_network("no_such_network") is None


def test_a_library_network_tells_its_images() -> None:
    models = pytest.importorskip("torchvision.models")
    found = network_source("inception_v3")
    assert found.input_shape == (3, 299, 299)
    assert found.standard == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    large = network_source("torchvision:vit_h_14")
    with torch.device("meta"):
        assert large.input_shape == (3, *[models.get_model("vit_h_14").image_size] * 2)
    model = model_from("shufflenet_v2_x0_5", n_classes=7, seed=2)
    again = model_from("shufflenet_v2_x0_5", n_classes=7, seed=2)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert torch.equal(model.fc.weight, again.fc.weight)  # type: ignore[union-attr,arg-type]


def test_timm_networks_have_their_own_size_and_spread() -> None:
    pytest.importorskip("timm")
    found = network_source("timm:vit_tiny_patch16_224")
    assert found.input_shape == (3, 224, 224) and found.standard == ((0.5,) * 3, (0.5,) * 3)
    assert model_from("timm:resnet10t", n_classes=3).num_classes == 3


def test_names_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from causalprune.experiments import library_networks

    with pytest.raises(UnknownNameError, match=r"unknown network 'resnet'.*timm:<name>"):
        network_source("resnet")
    pytest.importorskip("torchvision.models")
    with pytest.raises(UnknownNameError, match=r"torchvision classifier 'resnet5O'.*resnet50"):
        network_source("torchvision:resnet5O")
    with pytest.raises(InvalidArgumentError, match="got no name"):
        network_source("torchvision:")

    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(library_networks, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="pip install timm"):
        network_source("timm:resnet18")
    with pytest.raises(UnknownNameError):
        network_source("resnet18")


def test_a_torchvision_of_another_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from causalprune.experiments import library_networks

    def broken(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(library_networks, "import_module", broken)
    with pytest.raises(MissingDependencyError, match="built for torch"):
        network_source("torchvision:resnet18")


# ---- images --------------------------------------------------------------------------------------


def _archive(path: Path, **changes: np.ndarray) -> Path:
    generator = np.random.default_rng()
    content = {
        "train_x": generator.integers(0, 256, (90, 3, 32, 32), dtype=np.uint8),
        "train_y": np.arange(90) % 10,
        "test_x": generator.integers(0, 256, (21, 3, 32, 32), dtype=np.uint8),
        "test_y": np.arange(21) % 10,
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    return path


def test_the_cifar_subset_is_standardised_by_channel(tmp_path: Path) -> None:
    _archive(tmp_path / "cifar10-subset" / "cifar10_lossless_subset.npz")
    splits = load_data("cifar-subset", root=tmp_path, input_shape=(3, 32, 32), calibration=20)
    assert [len(part[1]) for part in (splits.train, splits.calibration, splits.test)] == [
        70,
        20,
        21,
    ]
    assert splits.mean == (0.485, 0.456, 0.406) and splits.classes[3] == "cat"
    with np.load(tmp_path / "cifar10-subset" / "cifar10_lossless_subset.npz") as archive:
        pixels = torch.from_numpy(archive["test_x"]).float() / 255
    spread = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert torch.allclose(splits.test[0], (pixels - mean) / spread, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_x": np.zeros((90, 3, 32, 30), np.uint8)}, "expected images"),
        ({"train_x": np.zeros((90, 3, 32, 32), np.float32)}, "expected images"),
        ({"test_y": np.arange(20) % 10}, "expected images"),
        ({"test_y": np.arange(21)}, "expected classes 0 to 9"),
        ({"test_y": np.array([None] * 21)}, "not readable"),
    ],
)
def test_a_wrong_cifar_archive_is_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], words: str
) -> None:
    path = _archive(tmp_path / "cifar10_lossless_subset.npz", **changes)
    with pytest.raises(DataError, match=words):
        load_data("cifar-subset", root=path, input_shape=(3, 32, 32), calibration=20)


def test_a_missing_cifar_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAUSALPRUNE_DATA", raising=False)
    with pytest.raises(DataError, match="CAUSALPRUNE_DATA"):
        load_data("cifar-subset", input_shape=(3, 32, 32))
    with pytest.raises(DataError, match="holds no cifar10-subset"):
        load_data("cifar-subset", root=tmp_path, input_shape=(3, 32, 32))


def test_a_network_s_own_spread_is_taken(tmp_path: Path) -> None:
    _archive(tmp_path / "cifar10_lossless_subset.npz")
    own = NetworkSource(
        "mine", lambda n: torch.nn.Identity(), (3, 32, 32), ((0.5,) * 3, (0.5,) * 3)
    )
    parts = image_parts("cifar-subset", own, n_calibration=20, root=tmp_path)
    assert isinstance(parts.calibration, tuple) and parts.test is not None
    assert float(parts.calibration[0].min()) == -1.0 and float(parts.test[0].max()) == 1.0
    grey = NetworkSource("grey", lambda n: torch.nn.Identity(), (1, 32, 32), own.standard)
    assert image_parts("cifar-subset", grey, root=tmp_path, n_calibration=20).test[0].shape[1] == 1  # type: ignore[index]


def _rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def _disjoint(parts: ImageParts) -> None:
    assert isinstance(parts.calibration, tuple)
    assert parts.held_out is not None and parts.train is not None
    guard, scored = _rows(parts.held_out[0]), _rows(parts.calibration[0])
    assert not guard & scored and not guard & _rows(parts.train[0])
    assert scored <= _rows(parts.train[0])


def test_parts_of_a_data_set_have_no_image_in_common(tmp_path: Path) -> None:
    _archive(tmp_path / "cifar10_lossless_subset.npz")
    source = network_source("resnet20")
    first = image_parts("cifar-subset", source, n_calibration=20, held_out=15, root=tmp_path)
    _disjoint(first)
    assert len(first.held_out[1]) == 15 and len(first.train[1]) == 75  # type: ignore[index]
    without = image_parts("cifar-subset", source, n_calibration=20, root=tmp_path)
    assert without.held_out is None
    assert torch.equal(without.calibration[0], first.calibration[0])
    guarded = image_parts("cifar-subset", source, n_calibration=20, guarded=True, root=tmp_path)
    _disjoint(guarded)
    assert len(guarded.held_out[1]) == 35  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_parts_of_a_file(tmp_path: Path, suffix: str) -> None:
    path, guard = tmp_path / f"images{suffix}", tmp_path / "guard.pt"
    inputs, targets = torch.randn(50, 1, 5, 7), torch.arange(50) % 3
    if suffix == ".npz":
        np.savez(path, inputs=inputs.numpy(), targets=targets.numpy())
    else:
        torch.save((inputs, targets), path)
    torch.save({"inputs": inputs[:9], "targets": targets[:9]}, guard)
    source = NetworkSource("mine", lambda n: torch.nn.Identity())
    parts = image_parts(str(path), source, n_calibration=20, held_out=11)
    _disjoint(parts)
    assert parts.test is None and len(parts.train[1]) == 39  # type: ignore[index]
    named = image_parts(str(path), source, held_out=str(guard), test=str(guard))
    assert torch.equal(named.held_out[0], inputs[:9])  # type: ignore[index]
    assert torch.equal(named.test[1], targets[:9])  # type: ignore[index]
    assert torch.equal(named.calibration[0], inputs)


def test_images_that_cannot_be_parted(tmp_path: Path) -> None:
    source = NetworkSource("mine", lambda n: torch.nn.Identity())
    torch.save(torch.randn(9, 4), tmp_path / "bare.pt")
    torch.save((torch.randn(9, 4), torch.arange(8)), tmp_path / "odd.pt")
    bare, odd = str(tmp_path / "bare.pt"), str(tmp_path / "odd.pt")
    assert torch.is_tensor(image_parts(bare, source).calibration)
    for spec, options, words in (
        (bare, {"held_out": 3}, "has no targets"),
        (bare, {"test": bare}, "has no targets"),
        (odd, {}, "9 inputs and 8 targets"),
        (bare, {"test": odd}, "9 inputs and 8 targets"),
        (bare, {"test": str(tmp_path)}, "no such file"),
    ):
        with pytest.raises(DataError, match=words):
            image_parts(spec, source, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="input_shape"):
        image_parts("digits", source)


def test_images_from_takes_the_spread_of_a_library_network() -> None:
    pytest.importorskip("torchvision.models")
    pytest.importorskip("sklearn", reason="digits ship with scikit-learn")
    shape = (3, 16, 16)
    inputs, _ = images_from("digits", model="resnet18", input_shape=shape, max_images=8)
    assert float(inputs[:, 0].min()) == pytest.approx(-0.485 / 0.229, abs=1e-5)
    own, _ = images_from("digits", model="lenet5", input_shape=shape, max_images=8)
    assert not torch.equal(own, inputs)


def test_a_recipe_trains_on_its_own_images() -> None:
    images, labels = torch.eye(4).repeat(16, 1), torch.arange(4).repeat(16)
    model = torch.nn.Linear(4, 4)
    TrainOn(SgdRecipe(epochs=9, learning_rate=0.5, batch_size=8), (images, labels))(model)
    assert bool((model(images).argmax(1) == labels).all())
