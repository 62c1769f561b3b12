"""Reference networks against their published sizes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.experiments import build_network, register_network, registered_networks
from causalprune.experiments.model_specs import model_from
from causalprune.experiments.networks import network_spec
from causalprune.experiments.weights import load_weights, save_weights
from causalprune.measures import count_macs, count_parameters

SIZES = {
    "lenet5": (61_706, 416_520),
    "lenet300": (266_610, 266_200),
    "mlp": (545_810, 545_000),
    "debbi": (639_760, None),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_size_and_logits(name: str) -> None:
    parameters, macs = SIZES[name]
    model = build_network(name, seed=0)
    assert count_parameters(model) == parameters
    if macs is not None:
        assert count_macs(model, torch.zeros(1, 1, 28, 28)) == macs
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_debbi_without_13_and_28_filters_has_the_published_size() -> None:
    from causalprune.graph import capture
    from causalprune.pruning import apply, plan
    from causalprune.scoring import score

    model = build_network("debbi", seed=0)
    image = torch.zeros(1, 1, 28, 28)
    names = {group.name for group in capture(model, image).groups}
    assert {"conv1", "conv2", "fc1"} <= names
    proposal = plan(model, score(model, image, method="random"), ratio=0.0)
    chosen = {"conv1": tuple(range(13)), "conv2": tuple(range(28))}
    small = _with_removed(model, proposal, chosen, apply)
    assert count_parameters(small) == 281_988
    assert small(image).shape == (1, 10)


def _with_removed(model, proposal, chosen, apply):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return apply(model, replace(proposal, remove=chosen))


def test_weights_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = build_network("lenet5", seed=5).state_dict()
    state = torch.random.get_rng_state()
    second = build_network("lenet5", seed=5).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    other = build_network("lenet5", seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_pickled_network_does_not_need_the_package() -> None:
    assert b"causalprune" not in pickle.dumps(build_network("lenet5", seed=0))


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown network 'lenet'; known: .*lenet5"):
        build_network("lenet")
    with pytest.raises(UnknownNameError, match=r"unknown network 'net.py:build'"):
        network_spec("net.py:build")
    with pytest.raises(UnknownNameError, match="alexnet"):
        network_spec("torchvision:alexnett")
    with pytest.raises(InvalidArgumentError, match="n_classes"):
        build_network("lenet5", n_classes=1)


@pytest.mark.parametrize(
    ("name", "full", "side"),
    [
        ("resnet18", "torchvision:resnet18", 224),
        ("torchvision:inception_v3", "torchvision:inception_v3", 299),
        ("timm:resnet10t", "timm:resnet10t", 176),
    ],
)
def test_classifiers_of_libraries_are_found(name: str, full: str, side: int) -> None:
    spec = network_spec(name)
    assert (spec.name, spec.input_shape) == (full, (3, side, side))
    assert spec.standard is not None and len(spec.standard[0]) == 3


def test_a_library_s_network_follows_the_seed_and_has_the_classes_asked_for() -> None:
    first, second = (build_network("torchvision:squeezenet1_1", 7, seed=3) for _ in range(2))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    assert first(torch.rand(2, 3, 48, 48)).shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 75)])
def test_without_auxiliary_heads_training_gives_logits(name: str, size: int) -> None:
    # With 10 classes: torchvision's sizes with 1000, less the heads and 990 rows of the last layer.
    parameters = {"googlenet": 5_610_154, "inception_v3": 21_806_058}[name]
    model = build_network(f"torchvision:{name}", seed=0).train()
    assert count_parameters(model) == parameters
    assert model(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_weights_with_auxiliary_heads_load_without_them(tmp_path: Path) -> None:
    whole = model_from("torchvision:googlenet", n_classes=10)
    save_weights(whole, tmp_path / "googlenet.pt")
    spec = network_spec("googlenet")
    model = build_network("googlenet", seed=1).eval()
    with pytest.raises(DataError, match="aux1"):
        load_weights(model, tmp_path / "googlenet.pt")
    load_weights(model, tmp_path / "googlenet.pt", left_out=spec.left_out)
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(image), whole.eval()(image))


def test_registering_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from causalprune.experiments import networks

    monkeypatch.setattr(networks, "_NETWORKS", dict(networks._NETWORKS))

    @register_network("tiny", input_shape=(3, 4, 4))
    def tiny(in_channels: int, n_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 16, n_classes))

    assert "tiny" in registered_networks() and network_spec("tiny").input_shape == (3, 4, 4)
    assert build_network("tiny", 7)(torch.zeros(1, 3, 4, 4)).shape == (1, 7)
    with pytest.raises(InvalidArgumentError, match="registered already"):
        register_network("tiny", input_shape=(1, 1, 1))(lambda channels, classes: nn.Identity())
