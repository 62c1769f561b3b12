"""Every accepted form of data, and every refused one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import networks
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.scoring import as_batches, score

X, Y = networks.images(10), networks.targets(10)


class _Samples(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return X[index], int(Y[index])


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y.tolist(), strict=True))


def _generator() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, 10, 4):
        yield X[start : start + 4], Y[start : start + 4]


FORMS = {
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "tensor data set": lambda: TensorDataset(X, Y),
    "data set": _Samples,
    "stream": _Stream,
    "loader of a stream": lambda: DataLoader(_Stream(), batch_size=4),
    "generator": _generator,
    "list of batches": lambda: list(_generator()),
    "pair": lambda: (X, Y),
    "pair with int32 targets": lambda: [X, Y.int()],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_give_the_same_images(form: str) -> None:
    batches = list(as_batches(FORMS[form](), batch_size=4))
    assert torch.equal(torch.cat([b.inputs for b in batches]), X)
    assert torch.equal(torch.cat([b.targets for b in batches]), Y)
    assert {b.targets.dtype for b in batches} == {torch.int64}


@pytest.mark.parametrize("form", FORMS)
def test_score_takes_every_form(form: str) -> None:
    model = networks.lenet()
    frame = score(model, FORMS[form](), "ablation", batch_size=4).frame
    expected = score(model, (X, Y), "ablation", batch_size=4).frame
    np.testing.assert_allclose(frame["effect"], expected["effect"], atol=1e-12)


@pytest.mark.parametrize("max_images", [1, 4, 7, 99])
@pytest.mark.parametrize("form", FORMS)
def test_max_images_is_the_first_images(form: str, max_images: int) -> None:
    batches = list(as_batches(FORMS[form](), batch_size=4, max_images=max_images))
    assert torch.equal(torch.cat([b.inputs for b in batches]), X[:max_images])


def test_number_of_batches_where_known() -> None:
    assert as_batches((X, Y), batch_size=4).n_batches == 3
    assert as_batches((X, Y), batch_size=4, max_images=5).n_batches == 2
    assert as_batches(_generator(), batch_size=4).n_batches is None
    assert as_batches(X, labels=False).example.shape == (1, 1, 16, 16)


def test_bare_tensor_where_no_labels_are_needed() -> None:
    model = networks.lenet()
    assert len(score(model, X, "l1").frame) == 28
    assert len(score(model, X, "path", lambda logits, targets: logits.amax(1)).frame) == 28
    with pytest.raises(DataError, match="targets"):
        score(model, X, "path")


def test_user_generator_is_not_drained_by_a_method_without_data() -> None:
    source = _generator()
    score(networks.lenet(), source, "l1")
    assert len(list(source)) >= 1


BAD = {
    "no images": (X[:0], Y[:0]),
    "empty loader": DataLoader(TensorDataset(X[:0], Y[:0])),
    "empty list": [],
    "lengths differ": (X, Y[:3]),
    "float targets": (X, Y.float()),
    "one-hot targets": (X, torch.eye(10, dtype=torch.int64)),
    "negative target": (X, Y - 1),
    "target too large": (X, Y + 1),
    "integer images": ((X * 10).byte(), Y),
    "not finite": (X.clone().fill_(torch.nan), Y),
    "one dimension": X.flatten(),
    "three parts": [(X, Y, Y)],
    "arrays": [(X.numpy(), Y.numpy())],
    "mixed shapes": [(X, Y), (X[..., :8], Y)],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case: str) -> None:
    with pytest.raises(DataError, match="data"):
        score(networks.lenet(), BAD[case], "ablation")


@pytest.mark.parametrize("data", [None, 3, "images", {"x": X}])
def test_not_data_at_all(data: object) -> None:
    with pytest.raises(InvalidArgumentError, match="data"):
        score(networks.lenet(), data)


def test_images_that_do_not_fit_the_network() -> None:
    with pytest.raises(InvalidArgumentError, match="does not run"):
        score(networks.lenet(), (torch.zeros(2, 3, 16, 16), Y[:2]))


def test_shuffling_loader_is_reproducible_and_leaves_the_global_state() -> None:
    model, frames = networks.lenet(), []
    for _ in range(2):
        torch.manual_seed(len(frames))
        loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)
        before = torch.get_rng_state()
        frames.append(score(model, loader, "ablation", max_images=4, seed=5).frame)
        assert torch.equal(torch.get_rng_state(), before)
    assert frames[0].equals(frames[1])
    other = score(model, loader, "ablation", max_images=4, seed=6).frame
    assert not frames[0]["effect"].equals(other["effect"])
