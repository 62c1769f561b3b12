"""Scores of a network on a GPU are those on the CPU; skipped where there is none."""

from __future__ import annotations

import copy

import networks
import numpy as np
import pytest
import torch

from causalprune.scoring import METHODS, score

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

X, Y = networks.images(9), networks.targets(9)
OPTIONS = {"datafree": {}, "cswap": {}, "responsibility": {"theta": 0.1}}
NOT_COMPARED = ("random",)  # draws on the CPU, whatever the network is on


@pytest.mark.parametrize("name", networks.ALL)
@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
@pytest.mark.parametrize("units", ["groups", "filters"])
def test_exact_ablation(name: str, value: str, units: str) -> None:
    model = networks.ALL[name]()
    on_gpu = copy.deepcopy(model).cuda()
    options = {"intervention": value, "units": units, "batch_size": 9}
    expected = score(model, (X, Y), "ablation", **options).frame
    got = score(on_gpu, (X.cuda(), Y.cuda()), "ablation", **options).frame
    for column in ("effect", "importance", "se"):
        np.testing.assert_allclose(got[column], expected[column], atol=1e-4)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ablation", *NOT_COMPARED}))
def test_every_method(method: str) -> None:
    model = networks.residual()
    options = OPTIONS.get(method, {})
    expected = score(model, (X, Y), method, **options).frame
    got = score(copy.deepcopy(model).cuda(), (X.cuda(), Y.cuda()), method, **options).frame
    np.testing.assert_allclose(got["importance"], expected["importance"], rtol=1e-3, atol=1e-4)


def test_data_on_the_cpu_goes_to_the_network() -> None:
    model = networks.lenet()
    expected = score(model, (X, Y), "path").frame["effect"]
    got = score(copy.deepcopy(model).cuda(), (X, Y), "path").frame["effect"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
