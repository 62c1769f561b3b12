"""BackSelect beside a naive loop, and every way of removing pixels beside whole forward passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import LeNet
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError, UnsupportedModelError
from causalprune.experiments import build_network
from causalprune.measures import cross_confidence, informative_features
from causalprune.measures.pixel_removal import (
    LinearRemoval,
    PixelRemoval,
    WindowRemoval,
    pixel_removal,
)


class Functional(nn.Module):
    """Calls activations and poolings as functions, and reads a value twice behind the third."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.silu(self.norm(self.conv1(x))), 2)
        x = x + self.conv2(x)
        return self.fc(x.mean((2, 3)))


def strided() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 5), stride=(2, 1), padding=(1, 0)),
        nn.GELU(),
        nn.Conv2d(4, 3, 2, stride=(1, 2)),
        nn.ReLU(inplace=True),
        nn.AvgPool2d((2, 1), stride=1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def overlapping() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 4, padding=3),
        nn.MaxPool2d(3, stride=2),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


NETWORKS = {
    "functional": (Functional, (2, 9, 7), WindowRemoval, 4),
    "lenet": (LeNet, (1, 16, 16), WindowRemoval, 3),
    "lenet5": (lambda: build_network("lenet5"), (1, 28, 28), WindowRemoval, 6),
    "strided": (strided, (2, 11, 15), WindowRemoval, 5),
    "overlapping": (overlapping, (1, 13, 10), WindowRemoval, 4),
    "one layer": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(2)),
        (1, 5, 8), WindowRemoval, 1,
    ),
    "perceptron": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3)),
        (3, 4, 5), LinearRemoval, 0,
    ),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), (2, 3, 3), LinearRemoval, 0),
    "dilated": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2, dilation=2), nn.Flatten(), nn.LazyLinear(3)),
        (1, 6, 5), PixelRemoval, 0,
    ),
    "skipping": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1, stride=2), nn.Flatten(), nn.LazyLinear(3)),
        (1, 6, 5), PixelRemoval, 0,
    ),
}  # fmt: skip


def built(name: str, seed: int, n: int) -> tuple[nn.Module, Tensor, type, int]:
    build, shape, kind, n_layers = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, images = build(), torch.randn(n, *shape)
        model(images)  # shapes of lazy layers, and statistics of norms
    return model.double().eval(), images.double(), kind, n_layers


@torch.no_grad()
def naive(
    model: nn.Module, image: Tensor, keep: float, at_once: int = 1
) -> tuple[list[int], Tensor, int]:
    """The definition: probabilities of whole forward passes, one image and one pixel at a time."""
    label = int(model(image[None]).argmax())
    width, image, removed = image.shape[2], image.clone(), []
    left = list(range(image[0].numel()))
    n_left = max(1, round(keep * len(left)))
    while len(left) > n_left:
        values = []
        for pixel in left:
            without = image.clone()
            without[:, pixel // width, pixel % width] = 0
            logits = model(without[None])[0]
            others = logits[torch.arange(len(logits)) != label]
            values.append(float(logits[label] - others.logsumexp(0)))
        best = sorted(range(len(left)), key=lambda k: -values[k])
        for pixel in [left[k] for k in best[: min(at_once, len(left) - n_left)]]:
            image[:, pixel // width, pixel % width] = 0
            left.remove(pixel)
            removed.append(pixel)
    return removed, image, label


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_way_gives_the_values_of_whole_passes(name: str, seed: int) -> None:
    model, images, kind, n_layers = built(name, seed, 3)
    labels = torch.tensor([1, 0, 1])
    generator = torch.Generator().manual_seed(seed)
    n_pixels = images[0, 0].numel()
    with torch.no_grad():
        fast = pixel_removal(model, images, labels, 37)
        whole = PixelRemoval(model, images, labels, 64)
        assert type(fast) is kind
        if isinstance(fast, WindowRemoval):
            assert len(fast._network.layers) == n_layers
        for _ in range(3):
            pixels = torch.stack([torch.randperm(n_pixels, generator=generator) for _ in images])
            torch.testing.assert_close(fast.log_odds(pixels), whole.log_odds(pixels))
            some = pixels[:, : n_pixels // 4]
            torch.testing.assert_close(fast.log_odds(some), whole.log_odds(some))
            for each in (fast, whole):
                each.remove(some)
        assert torch.equal(fast.images, whole.images)
        assert (fast.images == 0).sum() > 0
    values = whole.log_odds(pixels)
    assert values.std(1).min() > 1e-5  # pixels do matter


@pytest.mark.parametrize("name", ["functional", "overlapping", "perceptron", "skipping"])
def test_selection_beside_a_naive_loop(name: str) -> None:
    model, images, _, _ = built(name, 5, 2)
    found = informative_features(model, images, keep=0.3, batch_size=50)
    for k, image in enumerate(images):
        removed, left, label = naive(model, image, 0.3)
        assert found.order[k].tolist() == removed
        torch.testing.assert_close(found.features[k], left)
        assert found.labels[k] == label
        for confidence, shown in ((found.confidence, image), (found.confidence_left, left)):
            expected = model(shown[None]).softmax(1)[0, label].item()
            assert confidence[k].item() == pytest.approx(expected)
    assert torch.equal(found.images, images)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("channels", [1, 3])
def test_four_by_four_images(seed: int, channels: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        ).double()
        images = torch.randn(3, channels, 4, 4).double()
    for keep in (0.1, 0.5):
        found = informative_features(model, images, keep=keep)
        for k, image in enumerate(images):
            removed, _, _ = naive(model, image, keep)
            assert found.order[k].tolist() == removed
            flat = found.mask[k].flatten()
            assert sorted(removed) == flat.logical_not().nonzero()[:, 0].tolist()
        n_left = max(1, round(keep * 16))
        assert (found.mask.sum((1, 2)) == n_left).all()
        assert found.n_rows == 3 * sum(range(n_left + 1, 17))


def test_several_pixels_a_step() -> None:
    model, images, _, _ = built("functional", 2, 2)
    found = informative_features(model, images, keep=0.2, pixels_per_step=7)
    for k, image in enumerate(images):
        assert found.order[k].tolist() == naive(model, image, 0.2, at_once=7)[0]
    part = informative_features(model, images, keep=0.2, pixels_per_step=0.25)
    assert part.order.shape == found.order.shape
    assert part.n_rows < found.n_rows
    # 63 pixels: 15, 12, 9, 6, 5, 4 go at a quarter of what is there; 13 stay, one goes at the end.
    assert part.n_rows == 2 * (63 + 48 + 36 + 27 + 21 + 16)
    n_left = 13
    assert part.mask.sum((1, 2)).tolist() == [n_left, n_left]


def test_zero_pixels_are_not_run_and_go_as_the_definition_says() -> None:
    model, images, _, _ = built("overlapping", 3, 2)
    images = images * (images.abs() > 1)
    rows: list[int] = []
    with torch.no_grad():
        labels = model(images).argmax(1)
        removal = pixel_removal(model, images, labels, 1000)
        removal._of_phase = _counting(removal._of_phase, rows)  # type: ignore[attr-defined]
        pixels = torch.arange(images[0, 0].numel()).repeat(2, 1)
        values = removal.log_odds(pixels)
    assert sum(rows) == (images != 0).sum()
    assert (values[(images == 0).flatten(1)].view(-1)).unique().numel() == 2
    found = informative_features(model, images, keep=0.05)
    for k, image in enumerate(images):
        assert torch.equal(found.features[k], naive(model, image, 0.05)[1])


def _counting(run, rows: list[int]):  # type: ignore[no-untyped-def]
    def counted(phase, image: Tensor, pixel: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rows.append(len(image))
        return run(phase, image, pixel)

    return counted


def test_certain_networks_are_still_ranked() -> None:
    """Probabilities round to 1 for every pixel; the log-odds tell them apart."""
    weight = torch.stack([torch.arange(16.0) + 1, torch.zeros(16)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    model[1].weight = nn.Parameter(10 * weight)
    found = informative_features(model, torch.ones(1, 1, 4, 4), keep=0.25)
    assert found.order[0].tolist() == list(range(12))
    assert found.confidence.item() == found.confidence_left.item() == 1.0


def test_hooks_are_run_as_they_are() -> None:
    for name in ("one layer", "perceptron"):
        model, images, _, _ = built(name, 0, 2)
        model[1 if name == "perceptron" else 0].register_forward_hook(lambda *a: a[2] * 2)
        with torch.no_grad():
            assert type(pixel_removal(model, images, torch.zeros(2).long(), 8)) is PixelRemoval
        found = informative_features(model, images, keep=0.5)
        assert found.order[0].tolist() == naive(model, images[0], 0.5)[0]
    model, images, _, _ = built("one layer", 0, 1)
    model.register_forward_hook(lambda *a: -a[2])  # of the network itself, which no trace sees
    found = informative_features(model, images, keep=0.5)
    assert found.order[0].tolist() == naive(model, images[0], 0.5)[0]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return x.mean((2, 3)) if float(x.max()) > 0.5 else x.amax((2, 3))


def test_networks_that_cannot_be_traced_run_as_a_whole() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = Untraceable().double(), torch.randn(1, 1, 5, 6).double()
    with torch.no_grad():
        assert type(pixel_removal(model, images, torch.zeros(1).long(), 8)) is PixelRemoval
    found = informative_features(model, images, keep=0.5, batch_size=1)
    assert found.order[0].tolist() == naive(model, images[0], 0.5)[0]


@pytest.mark.parametrize(("name", "expected"), [("one layer", 1), ("dilated", 3)])
def test_small_operators_run_on_one_thread(name: str, expected: int) -> None:
    model, images, _, _ = built(name, 0, 1)
    seen: list[int] = []
    model[-1].register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    informative_features(model, images, keep=0.5)
    assert seen[len(seen) // 2] == expected
    assert torch.get_num_threads() == 3


def test_modes_gradients_and_images_stay() -> None:
    model, images, _, _ = built("functional", 0, 4)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = images.clone()
    found = informative_features(
        model, iter([images[:1], images[1:]]), n_images=3, pixels_per_step=20
    )
    assert len(found.labels) == 3
    assert model.training and torch.equal(images, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.confidence.requires_grad


def test_cross_table_by_definition() -> None:
    networks = {name: built("functional", seed, 4)[0] for name, seed in (("a", 0), ("b", 1))}
    images = built("functional", 7, 4)[1]
    features = {
        name: informative_features(network, images, pixels_per_step=5, keep=0.3)
        for name, network in networks.items()
    }
    table = cross_confidence(networks, features)
    assert len(table) == 4
    for row in table.to_dict("records"):
        own = features[row["selected_by"]]
        chances = networks[row["tested_on"]](own.images * own.mask[:, None]).softmax(1)
        confidence = chances[torch.arange(4), own.labels]
        assert row["confidence"] == pytest.approx(confidence.mean().item())
        assert row["standard_error"] == pytest.approx(confidence.std().item() / 2)
        assert row["matching"] == (chances.argmax(1) == own.labels).double().mean()
        assert row["n"] == 4
        if row["selected_by"] == row["tested_on"]:
            assert row["confidence"] == pytest.approx(own.confidence_left.mean().item())
    wide = table.pivot(index="selected_by", columns="tested_on", values="confidence")
    assert wide.shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, r"keep: expected a fraction in \(0, 1\), got 0"),
        ({"keep": 1}, r"keep: expected a fraction in \(0, 1\), got 1"),
        ({"pixels_per_step": 0}, "pixels_per_step: .* got 0"),
        ({"pixels_per_step": 2.5}, "pixels_per_step: .* got 2.5"),
        ({"pixels_per_step": True}, "pixels_per_step: .* got True"),
        ({"n_images": 0}, "n_images: expected an integer >= 1, got 0"),
        ({"batch_size": 1.0}, "batch_size: expected an integer >= 1, got 1.0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    model, images, _, _ = built("one layer", 0, 1)
    with pytest.raises(InvalidArgumentError, match=message):
        informative_features(model, images, **options)


def test_bad_networks_and_data_are_refused() -> None:
    model, images, _, _ = built("one layer", 0, 1)
    with pytest.raises(InvalidArgumentError, match=r"model: expected an nn\.Module, got int"):
        informative_features(3, images)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data: expected images \[N, C, H, W\], got"):
        informative_features(nn.Linear(40, 2).double(), images.flatten(1))
    with pytest.raises(UnsupportedModelError, match=r"model: expected logits \[N, K\]"):
        informative_features(nn.Conv2d(1, 2, 3).double(), images)
    features = {"one": informative_features(model, images)}
    with pytest.raises(InvalidArgumentError, match="expected at least one of each, got 0 and 1"):
        cross_confidence({}, features)
    features["one"].labels[0] = 2
    with pytest.raises(InvalidArgumentError, match=r"networks\['one'\]: expected the classes"):
        cross_confidence({"one": model}, features)
