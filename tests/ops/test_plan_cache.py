"""What is kept of a weight, and when it is no longer used."""

from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from convolution_cases import sparse_problem, without_dense
from torch import Tensor, nn

from causalprune import _native
from causalprune.ops import plan_cache, sparse_conv2d
from causalprune.ops.plan_cache import forget_plans, kept_plan


class Maker:
    """Makes plans and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> int:
        self.made += 1
        return self.made


def test_a_plan_is_made_once() -> None:
    weight, make = torch.ones(3), Maker()
    assert [kept_plan(weight, None, "key", make) for _ in range(3)] == [1, 1, 1]
    assert kept_plan(weight, None, "another key", make) == 2
    assert kept_plan(weight.detach(), None, "key", make) == 1  # the same memory
    assert kept_plan(weight[:2], None, "key", make) == 3
    bias = torch.ones(1)
    assert [kept_plan(weight, bias, "key", make) for _ in range(2)] == [4, 4]
    assert kept_plan(weight, None, "key", make) == 1
    assert kept_plan(weight.clone(), None, "key", make) == 5


WRITES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda weight: weight.detach().mul_(2),
    "one number": lambda weight: weight.detach().__setitem__(0, 5.0),
    "copied": lambda weight: weight.detach().copy_(torch.zeros(3)),
    "a step": lambda weight: torch.optim.SGD([weight], lr=0.1).step(),
    "several at once": lambda weight: torch._foreach_add_([weight.detach()], 1.0),
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_are_noticed(write: str) -> None:
    weight, make = nn.Parameter(torch.ones(3)), Maker()
    weight.grad = torch.ones(3)
    assert kept_plan(weight, None, "key", make) == 1
    WRITES[write](weight)
    # Not at first sight: in training it is about to be written to again.
    assert [kept_plan(weight, None, "key", make) for _ in range(3)] == [None, 2, 2]


def test_a_written_bias_and_other_memory_are_noticed() -> None:
    weight, bias, make = torch.ones(3), torch.ones(3), Maker()
    assert kept_plan(weight, bias, "key", make) == 1
    bias += 1
    assert [kept_plan(weight, bias, "key", make) for _ in range(2)] == [None, 2]
    weight.data = torch.zeros(3)
    assert kept_plan(weight, bias, "key", make) == 3


def test_other_writes_are_told() -> None:
    weight, make = torch.ones(3), Maker()
    assert kept_plan(weight, None, "key", make) == 1
    weight.numpy()[1] = 7
    assert kept_plan(weight, None, "key", make) == 1
    forget_plans(weight)
    assert kept_plan(weight, None, "key", make) == 2


def test_a_plan_goes_with_its_weight() -> None:
    weight = torch.ones(3)
    storage = weight.untyped_storage()._cdata
    kept_plan(weight, None, "key", Maker())
    view = weight[1:]
    del weight
    gc.collect()
    assert storage in plan_cache._OF_STORAGE
    del view
    gc.collect()
    assert storage not in plan_cache._OF_STORAGE


def test_plans_go_with_their_bias() -> None:
    weight, make = torch.ones(3), Maker()
    for _ in range(5):
        kept_plan(weight, torch.ones(2), "key", make)
    assert len(plan_cache._OF_STORAGE[weight.untyped_storage()._cdata]) <= 2


def test_the_eight_last_plans_are_kept() -> None:
    weight, make = torch.ones(3), Maker()
    for key in range(8):
        kept_plan(weight, None, key, make)
    kept_plan(weight, None, 0, make)
    kept_plan(weight, None, 8, make)
    assert make.made == 9
    kept_plan(weight, None, 0, make)
    assert make.made == 9
    kept_plan(weight, None, 1, make)
    assert make.made == 10


def test_a_failure_is_not_kept() -> None:
    def fail() -> int:
        raise MemoryError("no room")

    weight = torch.ones(3)
    with pytest.raises(MemoryError):
        kept_plan(weight, None, "key", fail)
    assert kept_plan(weight, None, "key", Maker()) == 1


def test_no_plan_of_a_weight_whose_writes_are_not_counted() -> None:
    with torch.inference_mode():
        weight = torch.ones(3)
    assert kept_plan(weight, None, "key", Maker()) is None


def test_threads_wait_for_one_plan() -> None:
    weight, made = torch.ones(3), []
    start = threading.Barrier(4)

    def make() -> int:
        made.append(threading.get_ident())
        time.sleep(0.02)
        return len(made)

    found: list[object] = []

    def run() -> None:
        start.wait()
        found.append(kept_plan(weight, None, "key", make))

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [1] * 4 and len(made) == 1


# ---- what convolutions keep ----------------------------------------------------------------------


def test_tiles_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_dense(monkeypatch, "sparse_conv2d")
    wanted: list[tuple[int, ...]] = []
    made = _native.PackedConvolution

    def convolution(*arguments: object) -> object:
        blocking = arguments[11]
        assert isinstance(blocking, tuple)
        wanted.append(blocking)
        return made(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("causalprune.ops.packed_plans._native.PackedConvolution", convolution)
    monkeypatch.setattr("causalprune.ops.packed_plans._TIMED", OrderedDict())
    tensors, options = sparse_problem("3x3")
    sparse_conv2d(**tensors, **options)
    sparse_conv2d(**tensors, **options)
    assert wanted == [(1, 0, 0, 0)]
    sparse_conv2d(tensors["x"], tensors["weight"].clone(), **options)
    assert len(wanted) == 2 and all(size > 0 for size in wanted[1])


def test_values_are_those_of_the_weight_as_it_is() -> None:
    tensors, options = sparse_problem("3x3")
    del tensors["residual"]
    x, weight, bias = tensors.values()

    def run() -> Tensor:
        got = sparse_conv2d(x, weight, bias, **options)
        dense = torch.nn.functional.conv2d(x, weight, bias, **options)
        torch.testing.assert_close(got, dense, rtol=1e-4, atol=1e-4)
        return got

    first = run()
    for write in (lambda: weight.mul_(2), lambda: bias.add_(1), lambda: weight.zero_()):
        write()
        assert not torch.equal(run(), first)
        run()
    weight.numpy()[:] = 1
    forget_plans(weight)
    run()
