"""Cheap effects: exact where they must be, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.scoring import Job, score, surrogates
from causalprune.scoring.data import Batch
from causalprune.scoring.driver import open_job
from causalprune.scoring.outcomes import Outcome
from causalprune.scoring.path import UnitPaths
from causalprune.scoring.surrogates import Surrogate, surrogate_of

N = 7


@contextmanager
def job_of(model: nn.Module, outcome: object = "loss", n: int = N) -> Iterator[tuple[Job, Batch]]:
    batch = Batch(torch.randn(n, 1, 16, 16), torch.arange(n) % 3)
    data = (batch.inputs, batch.targets)
    with open_job(model, data, "ablation", outcome, options={}) as (_, job):  # type: ignore[arg-type]
        yield job, batch


def prepared(name: str | None, job: Job) -> Surrogate:
    found = surrogate_of(name, job)
    assert found is not None
    return found


def last_group(effects: Tensor, job: Job) -> Tensor:
    return effects[:, -job.graph.groups[-1].n_units :]


def exact_effects(job: Job, batch: Batch, group: str) -> Tensor:
    """Per-image effects by whole forward passes with hooks."""
    from causalprune.graph import removed

    units = job.graph.group(group).n_units
    with torch.no_grad():
        plain = job.outcome.function(job.model(batch.inputs).double(), batch.targets)
        columns = []
        for unit in range(units):
            with removed(job.model, job.graph, {group: [unit]}):
                output = job.model(batch.inputs).double()
            columns.append(job.outcome.function(output, batch.targets) - plain)
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", ["path", "taylor"])
@pytest.mark.parametrize("network", ["lenet", "residual"])
def test_path_and_taylor_are_the_methods_of_that_name(name: str, network: str) -> None:
    with job_of(networks.ALL[network]()) as (job, batch):
        effects = prepared(name, job).effects(batch)
        frame = score(job.model, (batch.inputs, batch.targets), name).frame
    torch.testing.assert_close(effects.mean(0), torch.tensor(frame["effect"].to_numpy()))
    torch.testing.assert_close(effects.abs().mean(0), torch.tensor(frame["importance"].to_numpy()))


@pytest.mark.parametrize("outcome", ["loss", "probability", "margin", "logit"])
def test_logit_is_exact_in_the_last_hidden_layer(outcome: str) -> None:
    with job_of(networks.lenet(), outcome) as (job, batch):
        found = last_group(prepared("logit", job).effects(batch), job)
        exact = exact_effects(job, batch, job.graph.groups[-1].name)
        linear = last_group(prepared("path", job).effects(batch), job)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)
    if outcome == "loss":
        assert not torch.allclose(linear, exact, atol=1e-3)


@pytest.mark.parametrize("outcome", ["loss", "probability"])
def test_log_odds_of_two_classes_are_exact_in_the_last_hidden_layer(outcome: str) -> None:
    model = networks.lenet()
    model.fc3 = nn.Linear(8, 2)
    with job_of(networks.settle(model), outcome) as (job, batch):
        batch = Batch(batch.inputs, batch.targets % 2)  # type: ignore[operator]
        found = last_group(prepared("log_odds", job).effects(batch), job)
        exact = exact_effects(job, batch, job.graph.groups[-1].name)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


def test_log_odds_is_the_loss_of_linearised_log_odds() -> None:
    def odds(logits: Tensor, targets: Tensor) -> Tensor:
        probability = logits.softmax(1).gather(1, targets[:, None]).squeeze(1)
        return probability.log() - (1 - probability).log()

    with job_of(networks.residual(), n=5) as (job, batch):
        found = prepared("log_odds", job).effects(batch)
        change = UnitPaths(job.model, job.graph, Outcome("odds", odds)).effects(batch)
        with torch.no_grad():
            logits = job.model(batch.inputs).double()
    before = odds(logits, batch.targets)[:, None]  # type: ignore[arg-type]
    moved = before + torch.cat([change[g.name] for g in job.graph.groups], 1)
    loss = -F.logsigmoid(moved) + F.logsigmoid(before)
    torch.testing.assert_close(found, loss, atol=1e-6, rtol=1e-5)


def test_beyond_so_many_classes_the_unlikely_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "MOST_CLASSES", 3)
    model = networks.lenet()
    model.fc3 = nn.Linear(8, 9)
    with job_of(networks.settle(model)) as (job, batch):
        cheap = prepared("logit", job)
        assert cheap.forwards_per_image == 1 + 3 * 4
        found = last_group(cheap.effects(batch), job)
        with torch.no_grad():
            logits, kept = job.model(batch.inputs).double(), []
            for image, target in enumerate(batch.targets.tolist()):  # type: ignore[union-attr]
                others = [k for k in logits[image].argsort(descending=True) if k != target][:2]
                kept.append([target, *map(int, others)])
            hidden = batch.inputs
            for layer in (model.conv1, model.conv2):
                hidden = F.max_pool2d(F.relu(layer(hidden)), 2)
            hidden = F.relu(model.fc2(F.relu(model.fc1(hidden.flatten(1)))))
            for unit in range(8):
                moved = logits.clone()
                for image, classes in enumerate(kept):
                    change = hidden[image, unit] * model.fc3.weight[classes, unit]
                    moved[image, classes] -= change.double()
                expected = F.cross_entropy(moved, batch.targets, reduction="none")
                expected -= F.cross_entropy(logits, batch.targets, reduction="none")
                torch.testing.assert_close(found[:, unit], expected, atol=1e-5, rtol=1e-4)


def test_logit_without_targets() -> None:
    def spread(logits: Tensor, targets: object) -> Tensor:
        return logits.softmax(1).square().sum(1)

    with job_of(networks.lenet(), spread) as (job, batch):
        batch = Batch(batch.inputs, None)
        found = last_group(prepared("logit", job).effects(batch), job)
        exact = exact_effects(job, batch, job.graph.groups[-1].name)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("outcome", "default"),
    [("loss", "log_odds"), ("probability", "log_odds"), ("margin", "path"), ("correctness", None)],
)
def test_default(outcome: str, default: str | None) -> None:
    with job_of(networks.mlp(), outcome) as (job, _):
        found = surrogate_of(None, job)
    assert (None if found is None else found.name) == default


def test_what_cannot_be_is_said() -> None:
    with job_of(networks.mlp(), "correctness") as (job, _):
        with pytest.raises(InvalidArgumentError, match="surrogate='none'"):
            surrogate_of("path", job)
        assert surrogate_of("none", job) is None
        with pytest.raises(UnknownNameError, match="surrogate 'lasso'"):
            surrogate_of("lasso", job)
    with job_of(networks.mlp(), "margin") as (job, _):
        with pytest.raises(InvalidArgumentError, match="'log_odds' knows the outcomes loss"):
            surrogate_of("log_odds", job)
        blind = replace(job, graph=replace(job.graph, traced=False, untraced="a branch"))
        assert surrogate_of(None, blind) is None
        with pytest.raises(InvalidArgumentError, match="a branch"):
            surrogate_of("path", blind)
