"""Blame against its definition: exact responsibility image by image, then the mean."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from causalprune.errors import InvalidArgumentError
from causalprune.scoring import score


def _model() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 42, 5), nn.ReLU()
    )
    model.append(nn.Linear(5, 3))
    return networks.settle(model, seed=int(torch.randint(1000, ()))).double()


def _images(n: int) -> torch.Tensor:
    return torch.randn(n, 1, 13, 15, dtype=torch.float64)


@pytest.mark.parametrize("theta", [None, 0.05])
def test_blame_is_the_mean_of_exact_responsibility(theta: float | None) -> None:
    model, x = _model(), _images(7)
    options = {"theta": theta, "max_contingency": 4}
    scores = score(model, x, "blame", batch_size=3, **options)
    each = np.stack(
        [
            score(model, image[None], "responsibility", form="exact", **options).frame["importance"]
            for image in x
        ]
    )
    np.testing.assert_allclose(scores.frame["importance"], each.mean(0), rtol=1e-12)
    table = scores.tables["blame"]
    np.testing.assert_allclose(table["blame"], each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(table["se"], stats.sem(each), atol=1e-12)
    np.testing.assert_allclose(table["upper"], each.mean(0), rtol=1e-12)  # all sets were tried
    assert (table["exact"] == 1).all() and (table["n"] == 7).all()
    single = scores.tables["contingencies"]
    np.testing.assert_array_equal(single[single["image"] == 3]["responsibility"], each[3])
    assert (scores.frame["n"] == 7).all() and scores.frame["effect"].isna().all()


def test_a_shallow_search_bounds_blame_from_both_sides() -> None:
    model, x = _model(), _images(6)
    truth = score(model, x, "blame", theta=0.2, max_contingency=4).frame["importance"]
    shallow = score(model, x, "blame", theta=0.2, max_contingency=0, beam_width=0)
    table = shallow.tables["blame"]
    assert (table["blame"] <= truth + 1e-12).all() and (table["upper"] >= truth - 1e-12).all()
    assert (table["exact"] < 1).any() and "lower bounds" in shallow.notes[-1]


def test_one_image_has_no_standard_error_and_layers_restrict() -> None:
    model, x = _model(), _images(1)
    scores = score(model, x, "blame", layers=["0"])
    assert scores.tables["blame"]["se"].isna().all() and len(scores.tables["blame"]) == 4
    assert scores.frame["importance"][4:].isna().all()
    assert scores.frame["importance"][:4].notna().all()


def test_bad_options() -> None:
    for name, options in (
        ("theta", {"theta": 0}),
        ("target_class", {"target_class": 1}),
        ("beam_width", {"beam_width": -1}),
        ("outcome", {"outcome": "logit"}),
    ):
        with pytest.raises(InvalidArgumentError, match=name):
            score(_model(), _images(2), "blame", **options)  # type: ignore[arg-type]
