"""Tensors that several steps read: compensation leaves them alone, and plans count them once."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.pruning import apply, plan
from causalprune.scoring import score


class SharedNorm(nn.Module):
    """One batch norm behind two branches; units go from the first only."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 9, 3)
        self.reads = nn.Conv2d(9, 5, 1, bias=False)
        self.beside = nn.Conv2d(2, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.norm(self.reads(F.relu(self.first(x)))), self.norm(self.beside(x))
        return self.head(torch.cat([F.relu(y).mean((2, 3)) for y in branches], 1))


class Lent(nn.Module):
    """A layer behind the removed units lends its bias or its weight to a step beside them."""

    def __init__(self, lent: str) -> None:
        super().__init__()
        self.lent = lent
        self.first, self.reads, self.behind = nn.Linear(7, 9), nn.Linear(9, 6), nn.Linear(6, 4)
        if lent == "bias":
            self.beside = nn.Linear(7, 4)
            self.beside.bias = self.behind.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.behind(F.relu(self.reads(F.relu(self.first(x)))))
        if self.lent == "bias":
            return y + self.beside(x)
        return y + F.linear(x[:, 1:], self.behind.weight)


@pytest.mark.parametrize("compensation", ["mean", "refit"])
def test_a_norm_that_is_called_elsewhere_takes_no_constant(compensation: str) -> None:
    model = networks.settle(SharedNorm())
    images = torch.randn(11, 2, 7, 5)
    decided = plan(model, score(model, images, "l1"), scope={"first": 0.5})
    assert len(decided.remove["first"]) in (4, 5)
    small = apply(model, decided, compensation=compensation, data=images)
    assert torch.equal(small.norm.running_mean, model.norm.running_mean)


@pytest.mark.parametrize("lent", ["bias", "weight"])
def test_a_refit_does_not_change_what_another_step_reads(lent: str) -> None:
    model = networks.settle(Lent(lent))
    images = torch.randn(40, 7)
    decided = plan(model, score(model, images, "l1"), scope={"first": 0.5})
    assert len(decided.remove["first"]) in (4, 5)
    small = apply(model, decided, compensation="refit", data=images)
    assert not torch.equal(small.reads.weight, apply(model, decided).reads.weight)
    assert torch.equal(small.behind.weight, model.behind.weight)
    assert torch.equal(small.behind.bias, model.behind.bias)


class Tied(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.p, self.q = nn.Linear(6, 6), nn.Linear(6, 6)
        self.q.weight = self.p.weight
        self.a, self.head = nn.Linear(6, 9), nn.Linear(9, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.q(self.p(x)))))


def test_the_message_about_another_network_does_not_blame_tied_layers() -> None:
    model = Tied(5)
    decided = plan(model, score(model, torch.randn(2, 6), "l1"), 0.2, "units")
    with pytest.raises(InvalidArgumentError, match="'head' has 40 parameters") as caught:
        apply(Tied(4), decided)
    assert "'q'" not in str(caught.value)
