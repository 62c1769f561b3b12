"""Training that learns and repeats itself; accuracy counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from causalprune.errors import DataError, DivergedError, InvalidArgumentError, UnknownNameError
from causalprune.experiments import build_network, evaluate, load_data, train
from causalprune.experiments.training import accuracy_of
from causalprune.measures import torch_threads
from causalprune.pruning import SgdRecipe
from causalprune.pruning.training import fit


def _data(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 6, generator=generator)
    return images, (images[:, 0] > 0).long()


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def test_the_network_learns() -> None:
    model = _network()
    before = evaluate(model, _data())
    log = train(model, _data(), epochs=10, learning_rate=0.02)
    assert log.losses[-1] < log.losses[0] and log.steps == 40
    assert evaluate(model, _data()) > max(0.9, before)


def test_digits_are_learnt() -> None:
    splits = load_data("digits")
    with torch_threads(1):
        model = build_network("lenet5", seed=0)
        train(model, splits.train, epochs=4, seed=0)
        assert evaluate(model, splits.test) > 0.9


def test_same_seed_same_weights_whatever_the_global_generator() -> None:
    states = []
    for other in (1, 2):
        torch.manual_seed(other)
        model = _network()
        train(model, _data(), epochs=3, seed=7)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    different = _network()
    train(different, _data(), epochs=3, seed=8)
    assert not torch.equal(states[0]["0.weight"], different.state_dict()["0.weight"])


def test_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    train(_network(), _data(), epochs=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_modes_are_restored_and_no_epochs_change_nothing() -> None:
    model = _network().eval()
    before = model.state_dict()["0.weight"].clone()
    assert train(model, _data(), epochs=0).losses == ()
    assert torch.equal(before, model.state_dict()["0.weight"])
    train(model, _data(), epochs=1)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(33, 16, [16, 17]), (32, 16, [16, 16]), (34, 16, [16, 16, 2]), (3, 1, [1, 1, 1]), (1, 4, [1])],
)
def test_no_image_is_left_out_or_by_itself(images: int, batch_size: int, sizes: list[int]) -> None:
    seen: list[torch.Tensor] = []
    model = _network()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = _data(images)
    log = train(model, data, epochs=1, batch_size=batch_size)
    assert [len(batch) for batch in seen] == sizes and log.steps == len(sizes)
    together = torch.cat(seen)
    assert torch.equal(together.sort(0).values, data[0].sort(0).values)


def test_a_batch_norm_behind_one_pixel_trains_on_any_number_of_images() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    train(model, _data(17), epochs=1, batch_size=8)
    assert int(model[1].num_batches_tracked) == 2


def test_every_epoch_is_reported() -> None:
    seen: list[tuple[int, float]] = []
    log = train(_network(), _data(), epochs=3, on_epoch=lambda *report: seen.append(report))
    assert seen == [(number + 1, loss) for number, loss in enumerate(log.losses)]


def test_accuracy_does_not_depend_on_the_batch_size() -> None:
    model = _network()
    logits = model.eval()(_data()[0])
    expected = float((logits.argmax(1) == _data()[1]).float().mean())
    for size in (1, 33, 1000):
        assert evaluate(model, _data(), batch_size=size) == pytest.approx(expected, abs=1e-7)


def test_divergence_is_an_error_and_not_a_result() -> None:
    images, labels = _data()
    with pytest.raises(InvalidArgumentError, match=r"learning_rate: training diverged"):
        train(nn.Linear(6, 2), (images * 1e30, labels), epochs=3, learning_rate=1e30)


def test_the_last_step_is_judged_too() -> None:
    images, labels = _data()
    model = nn.Linear(6, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=3e38)
    with pytest.raises(
        DivergedError, match=r"weight is not finite after the last step\) with 3e\+38"
    ):
        # A single step: the loss of the whole epoch is that of the weights before it.
        fit(model, (images * 100, labels), sgd, lambda _: 3e38, epochs=1, batch_size=200, seed=0)


def test_logits_that_are_no_numbers_are_no_accuracy() -> None:
    images, labels = _data(9)
    model = nn.Linear(6, 2)
    assert accuracy_of(model, (images, labels)) == evaluate(model, (images, labels))
    large = images.clone()
    large[4] = 3e38
    nn.init.constant_(model.weight, 9.0)
    with pytest.raises(DivergedError, match="for 1 of 9 images"):
        accuracy_of(model, (large, labels))
    assert not model._forward_hooks


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1, "batch_size": 0}, "batch_size"),
        ({"epochs": 1, "learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_numbers_out_of_range(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        train(_network(), _data(), **wrong)  # type: ignore[arg-type]


def test_data_that_do_not_fit() -> None:
    images, labels = _data()
    with pytest.raises(DataError, match="one class for each image"):
        evaluate(_network(), (images, labels[:-1]))
    with pytest.raises(DataError, match="no images"):
        train(_network(), (images[:0], labels[:0]), epochs=1)


def test_the_recipe_of_lost_in_pruning_is_the_one_for_cascades() -> None:
    here, there = _network(), _network()
    log = train(here, _data(), epochs=6, learning_rate=0.3, optimiser="sgd", seed=3)
    recipe = SgdRecipe(epochs=6, learning_rate=0.3, batch_size=64, seed=3)
    expected = recipe.train(there, _data())
    assert log == expected and log.losses[-1] < log.losses[0]
    there_now = there.state_dict()
    assert all(torch.equal(value, there_now[name]) for name, value in here.state_dict().items())


def test_augmented_images_are_other_images() -> None:
    images, labels = torch.rand(40, 1, 28, 28), torch.arange(40) % 2
    logs = []
    for augment in (None, "crop_flip"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
        with torch.no_grad():
            network[1].weight.fill_(0.01)
        logs.append(train(network, (images, labels), epochs=2, augment=augment))
    assert logs[0].losses != logs[1].losses
    with pytest.raises(UnknownNameError, match="blur"):
        train(network, (images, labels), epochs=1, augment="blur")
    with pytest.raises(UnknownNameError, match="lion"):
        train(network, (images, labels), epochs=1, optimiser="lion")
