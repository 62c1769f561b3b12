"""Retraining: the recipe's rates, masks held, users' own functions, and every form of data."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.pruning.masks import holding
from causalprune.pruning.retraining import SgdRecipe, crop_and_flip, retrain
from causalprune.pruning.training import evaluate
from causalprune.pruning.weights import prune_weights
from causalprune.scoring.keep_budgets import weight_layers

N = 53


def data(n: int = N) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 3
    images = 0.5 * torch.randn(n, 1, 16, 16)
    for k in range(3):
        images[labels == k, :, 5 * k : 5 * k + 5] += 2.0  # a band of its own for every class
    return images, labels


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# ---- the recipe ----------------------------------------------------------------------------------


def test_rates_are_those_of_the_schedule() -> None:
    recipe = SgdRecipe(10, learning_rate=0.2, milestones=(0.5, 0.8), gamma=0.1, warmup=0.2)
    rates = [recipe.rate(k / 20) for k in range(20)]
    rising = [0.02 + 0.18 * k / 4 for k in range(4)]
    assert rates == pytest.approx(rising + [0.2] * 6 + [0.02] * 6 + [0.002] * 4)
    assert SgdRecipe(1, milestones=(), warmup=0.0).rate(0.0) == 0.1


def test_every_step_is_that_of_torchs_own_optimiser() -> None:
    images, labels = data()
    recipe = SgdRecipe(
        3, 0.05, momentum=0.8, weight_decay=0.01, batch_size=20, nesterov=True, seed=4
    )
    model, expected = networks.lenet(), networks.lenet()
    losses: list[float] = []
    retrain(model, (images, labels), recipe, on_epoch=lambda _, loss: losses.append(loss))
    sgd = torch.optim.SGD(expected.parameters(), 0.05, 0.8, weight_decay=0.01, nesterov=True)
    order, step, found = torch.Generator().manual_seed(4), 0, []
    for _ in range(3):
        total = 0.0
        for chosen in torch.randperm(N, generator=order).split(20):
            sgd.param_groups[0]["lr"] = recipe.rate(step / 9)
            sgd.zero_grad()
            loss = nn.functional.cross_entropy(expected(images[chosen]), labels[chosen])
            loss.backward()
            sgd.step()
            total, step = total + loss.item(), step + 1
        found.append(total / 3)
    assert same(model, expected) and losses == pytest.approx(found)
    assert not model.training


def test_it_learns_and_repeats_itself_whatever_the_global_generator() -> None:
    learning = data(120)
    recipe = SgdRecipe(8, learning_rate=0.02, batch_size=8, seed=1)
    trained = []
    for other in (1, 2):
        torch.manual_seed(other)
        model, before = networks.vgg().train(), torch.get_rng_state()
        trained.append(retrain(model, learning, recipe))
        assert torch.equal(before, torch.get_rng_state())
    assert same(*trained) and trained[0].training
    assert evaluate(trained[0], data(120)) > 0.9
    other = retrain(networks.vgg().train(), learning, SgdRecipe(8, 0.02, batch_size=8, seed=2))
    assert not same(trained[0], other)


def test_frozen_parameters_stay() -> None:
    model = networks.lenet()
    model.conv1.weight.requires_grad_(False)
    before = model.conv1.weight.clone()
    retrain(model, data(), SgdRecipe(1, 0.1, weight_decay=0.5))
    assert torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"epochs": 1.5},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"batch_size": 0},
        {"milestones": (0.8, 0.2)},
        {"milestones": (91, 136)},
        {"warmup": 5},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        SgdRecipe(**{"epochs": 1, **wrong})  # type: ignore[arg-type]


def test_unknown_augmentations_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="augmentation"):
        SgdRecipe(1, augment="mixup")
    with pytest.raises(InvalidArgumentError, match="crop_flip"):
        retrain(
            nn.Linear(4, 2),
            (torch.zeros(3, 4), torch.zeros(3).long()),
            SgdRecipe(1, augment="crop_flip"),
        )


def test_divergence_is_an_error() -> None:
    images, labels = data()
    with pytest.raises(InvalidArgumentError, match="diverged"):
        retrain(networks.lenet(), (images * 1e20, labels), SgdRecipe(2, 1e9, batch_size=9))


# ---- augmentation --------------------------------------------------------------------------------


def test_every_crop_is_a_window_of_the_bordered_image_or_its_mirror() -> None:
    images = torch.randn(40, 2, 7, 9)
    bordered = nn.functional.pad(images, [4] * 4)
    flipped = shifted = 0
    for image, wide in zip(crop_and_flip(images), bordered, strict=True):
        windows = wide.unfold(1, 7, 1).unfold(2, 9, 1)
        plain = (windows == image[:, None, None]).all(-1).all(-1).all(0)
        mirrored = (windows == image.flip(-1)[:, None, None]).all(-1).all(-1).all(0)
        assert int(plain.sum()) + int(mirrored.sum()) == 1
        flipped += int(mirrored.any())
        shifted += not bool((plain | mirrored)[4, 4])
    assert 5 < flipped < 35 and shifted > 25


def test_augmentation_is_drawn_from_the_recipes_seed() -> None:
    learning = data()
    trained = [
        retrain(networks.lenet(), learning, SgdRecipe(2, 0.01, seed=3, augment=augment))
        for augment in ("crop_flip", crop_and_flip, None, lambda images: images)
    ]
    assert same(trained[0], trained[1]) and same(trained[2], trained[3])
    assert not same(trained[0], trained[2])


# ---- data ----------------------------------------------------------------------------------------


class Samples(Dataset):  # type: ignore[type-arg]
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def test_all_forms_of_data_train() -> None:
    images, labels = data()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, N, 10):
            yield images[start : start + 10], labels[start : start + 10]

    recipe = SgdRecipe(2, 0.02, batch_size=16, seed=6)
    plain = retrain(networks.lenet(), (images, labels), recipe)
    for form in (TensorDataset(images, labels), batches()):
        assert same(retrain(networks.lenet(), form, recipe), plain)
    for form in (Samples(images, labels), DataLoader(Samples(images, labels), 20, shuffle=True)):
        pair = [retrain(networks.lenet(), form, recipe) for _ in range(2)]
        assert same(*pair) and not same(pair[0], networks.lenet())
    in_order = list(batches())
    first = retrain(networks.lenet(), in_order, recipe)
    assert same(first, retrain(networks.lenet(), in_order, SgdRecipe(2, 0.02, seed=9)))


def test_data_that_cannot_train_is_refused() -> None:
    images, labels = data()
    for wrong in (
        (images, labels[:-1]),
        (images[:0], labels[:0]),
        Samples(images[:0], labels[:0]),
        [],
    ):
        with pytest.raises(DataError):
            retrain(networks.lenet(), wrong, SgdRecipe(1))
    with pytest.raises(DataError):
        retrain(networks.lenet(), images, SgdRecipe(1))


# ---- masks and users' functions ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["recipe", "in place", "another network"])
def test_masked_weights_stay_zero(form: str) -> None:
    learning = data()
    recipe = SgdRecipe(2, 0.02, weight_decay=0.1)

    def in_place(network: nn.Module) -> None:
        recipe.train(network, learning)

    def another(network: nn.Module) -> nn.Module:
        made = copy.deepcopy(network)
        recipe.train(made, learning)
        return made

    how = {"recipe": recipe, "in place": in_place, "another network": another}[form]
    sparse, budget = prune_weights(networks.residual(), method="wt", ratio=0.6)
    before = copy.deepcopy(sparse)
    found = retrain(sparse, learning, how, masks=budget.masks)
    assert (found is sparse) == (form != "another network")
    layers = weight_layers(found)
    for name, mask in budget.masks.items():
        assert torch.equal(layers[name].weight != 0, mask)
    assert not same(found, before)


def test_a_function_that_raises_leaves_nothing_behind() -> None:
    sparse, budget = prune_weights(networks.lenet(), method="wt", ratio=0.5)

    def failing(network: nn.Module) -> None:
        network.fc1.weight.data.fill_(1.0)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        retrain(sparse, None, failing, masks=budget.masks)
    assert torch.equal(sparse.fc1.weight != 0, budget.masks["fc1"])
    sgd = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(networks.images()).sum().backward()
    sgd.step()  # no hook of ours is left
    assert int((sparse.fc1.weight != 0).sum()) > int(budget.masks["fc1"].sum())


def test_a_function_that_returns_no_network_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"return a network or None, got 0\.7"):
        retrain(networks.lenet(), None, lambda network: 0.7)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidArgumentError, match="retrain: expected an SgdRecipe"):
        retrain(networks.lenet(), None, "sgd")  # type: ignore[arg-type]


def test_modes_come_back_after_an_error() -> None:
    model = networks.vgg()
    images, labels = data()
    with pytest.raises(ZeroDivisionError):
        retrain(model, (images, labels), SgdRecipe(1, augment=lambda images: 1 / 0))  # type: ignore[arg-type,return-value]
    assert not any(module.training for module in model.modules())


def test_holding_nothing_is_free() -> None:
    model = networks.lenet()
    before = copy.deepcopy(model)
    with holding(model, None):
        pass
    assert same(model, before)
