"""count_contingencies against its definition, and inside torch's own machinery."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune import _native, reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import count_contingencies


def rows_of(units: list[tuple[int, ...]], n_units: int) -> Tensor:
    sets = torch.zeros(len(units), n_units, dtype=torch.bool)
    for row, members in enumerate(units):
        sets[row, list(members)] = True
    return sets


def some_sets(n_units: int, largest: int, n: int | None = None) -> Tensor:
    """`n` of the sets of up to `largest` units (default: all), in random order."""
    every = [
        members
        for size in range(1, largest + 1)
        for members in itertools.combinations(range(n_units), size)
    ]
    chosen = torch.randperm(len(every))[:n].tolist()
    return rows_of([every[index] for index in chosen], n_units)


def flips_of(sets: Tensor, n_images: int) -> Tensor:
    """Images on which the units' weights add up to more than a threshold; some against it."""
    weight = torch.randn(sets.shape[1], n_images) + 0.3
    noise = torch.rand(len(sets), n_images) < 0.1
    return (sets.float() @ weight > 0.8) ^ noise


def assert_by_definition(sets: Tensor, flipped: Tensor, **options: int) -> None:
    counts, first = count_contingencies(sets, flipped, **options)
    expected = reference.count_contingencies(sets, flipped, **options)
    assert counts.dtype == first.dtype == torch.int64
    assert torch.equal(counts, expected[0]) and torch.equal(first, expected[1])


# The widest vector holds 512 images, the narrowest word 64.
CASES = [
    (1, 1, None, 1),
    (3, 3, None, 2),
    (5, 3, 17, 63),
    (6, 6, None, 64),
    (9, 4, 120, 65),
    (7, 2, None, 129),
    (10, 3, 100, 256),
    (8, 8, 200, 300),
    (5, 5, None, 512),
    (6, 3, 30, 1025),
]


@pytest.mark.parametrize(("n_units", "largest", "n", "n_images"), CASES)
def test_by_definition(isa: str, n_units: int, largest: int, n: int | None, n_images: int) -> None:
    sets = some_sets(n_units, largest, n)
    assert_by_definition(sets, flips_of(sets, n_images))


@pytest.mark.parametrize("n_units", [64, 65, 200])
def test_many_units(isa: str, n_units: int) -> None:
    """Units beyond one word, and more sets of a unit than sixteen fours count."""
    sets = some_sets(n_units, 2, 2500)
    assert_by_definition(sets, flips_of(sets, 70))


def test_many_contingency_sets_of_one_unit(isa: str) -> None:
    """Pairs with unit 0 flip everywhere, single units nowhere: 299 sets of one unit for it."""
    n_units = 300
    sets = rows_of([(u,) for u in range(n_units)] + [(0, u) for u in range(1, n_units)], n_units)
    flipped = (sets.sum(1) == 2)[:, None].expand(-1, 513)
    counts, first = count_contingencies(sets, flipped)
    assert (counts[:, 0] == torch.tensor([0, n_units - 1])).all()
    assert (counts[:, 1:] == torch.tensor([0, 1])).all()
    assert (first[:, 0] == n_units).all()
    assert torch.equal(first[512, 1:], torch.arange(n_units, 2 * n_units - 1))


def test_large_sets(isa: str) -> None:
    """A chain: every row has one unit more than the one before, in random order."""
    order = torch.randperm(90)
    sets = rows_of([tuple(order[: size + 1].tolist()) for size in range(90)], 90)
    sets = sets[torch.randperm(90)]
    flipped = torch.rand(90, 70) < 0.5
    assert_by_definition(sets, flipped)


def test_first_is_the_smallest_and_then_the_first_row(isa: str) -> None:
    sets = rows_of([(0, 1, 2), (1, 2), (0, 2), (0, 1), (2,), (0,), (1,)], 3)
    flipped = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]]).T
    counts, first = count_contingencies(sets, flipped.bool())
    assert first.tolist() == [[2, 1, 1], [2, 3, 2], [0, 6, 0]]
    assert counts[0].tolist() == [[0, 2, 0]] * 3
    assert counts[1].tolist() == [[0, 2, 0], [0, 1, 0], [0, 1, 0]]
    assert counts[2].tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 1]]


def test_max_size_adds_empty_columns() -> None:
    sets = some_sets(5, 2)
    flipped = flips_of(sets, 66)
    assert_by_definition(sets, flipped, max_size=5)
    counts, _ = count_contingencies(sets, flipped, max_size=5)
    assert torch.equal(counts[..., :2], count_contingencies(sets, flipped)[0])
    assert not counts[..., 2:].any()


@pytest.mark.parametrize(("m", "u", "n"), [(0, 3, 5), (4, 3, 0), (0, 0, 5), (0, 0, 0)])
def test_nothing(m: int, u: int, n: int) -> None:
    sets = some_sets(u, 2, m)
    counts, first = count_contingencies(sets, torch.zeros(len(sets), n, dtype=torch.bool))
    largest = int(sets.sum(1).max()) if m else 0
    assert counts.shape == (n, u, largest) and first.shape == (n, u)
    assert (first == -1).all() and not counts.any()


def test_strides_threads_and_bytes_change_nothing(isa: str) -> None:
    sets = some_sets(30, 3)
    flipped = flips_of(sets, 700)
    once = count_contingencies(sets, flipped)
    bytes_of = flipped.to(torch.uint8) * torch.randint(1, 256, flipped.shape, dtype=torch.uint8)
    others = [
        (sets.T.contiguous().T, flipped.T.contiguous().T),
        (sets.repeat_interleave(2, 1)[:, ::2], flipped.repeat(1, 2)[:, :700]),
        (sets, bytes_of.view(torch.bool)),
    ]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for pair in [(sets, flipped), *others]:
            again = count_contingencies(*pair)
            assert torch.equal(again[0], once[0]) and torch.equal(again[1], once[1])


def test_counts_are_those_of_a_permutation() -> None:
    """Naming the units and listing the rows otherwise renames the result."""
    sets = some_sets(11, 3, 150)
    flipped = flips_of(sets, 90)
    counts, first = count_contingencies(sets, flipped)
    units, rows = torch.randperm(11), torch.randperm(150)
    again, row = count_contingencies(sets[rows][:, units], flipped[rows])
    assert torch.equal(again, counts[:, units])
    assert torch.equal(row < 0, first[:, units] < 0)


def test_opcheck() -> None:
    operator = torch.ops.causalprune.count_contingencies.default
    sets = some_sets(6, 2)
    flipped = flips_of(sets, 10)
    torch.library.opcheck(operator, (sets, flipped, 2))
    torch.library.opcheck(operator, (sets.T.contiguous().T, flipped[:, ::2], 4))
    with FakeTensorMode():
        tables = (torch.empty(7, 3, dtype=torch.bool), torch.empty(7, 5, dtype=torch.bool))
        counts, first = count_contingencies(*tables, max_size=2)
    assert counts.shape == (5, 3, 2) and first.shape == (5, 3)
    assert counts.dtype == first.dtype == torch.int64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_tensors() -> None:
    sets = some_sets(9, 3)
    flipped = flips_of(sets, 100)
    counts, first = count_contingencies(sets.cuda(), flipped.cuda())
    assert counts.is_cuda and first.is_cuda
    expected = count_contingencies(sets, flipped)
    assert torch.equal(counts.cpu(), expected[0]) and torch.equal(first.cpu(), expected[1])


ONE, TWO = torch.tensor([[True, False]]), torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(
    ("sets", "flipped", "options", "words"),
    [
        (TWO.int(), TWO, {}, "sets.*bool.*int32"),
        (TWO, TWO.float(), {}, "flipped.*bool.*float32"),
        (TWO[0], TWO, {}, r"sets.*\[M, units\].*\[2\]"),
        (TWO, TWO[..., None], {}, r"flipped.*\[M, images\].*\[2, 2, 1\]"),
        (TWO, ONE, {}, "flipped.*2 rows.*got 1"),
        (TWO, TWO.to("meta"), {}, "flipped.*one device with sets.*meta"),
        (TWO.to_sparse(), TWO, {}, "sets.*dense.*sparse"),
        ([[True]], ONE, {}, "sets.*tensor.*list"),
        (torch.cat([TWO, ONE]), torch.cat([TWO, TWO])[:3], {}, "sets.*distinct.*rows 0 and 2"),
        (torch.cat([TWO, ~TWO])[[1, 2, 3]], TWO[[0, 1, 0]], {}, "sets.*empty.*row 2"),
        (TWO, TWO, {"max_size": 1}, "max_size.*largest row.*got 1 with 2 units in row 1"),
        (TWO, TWO, {"max_size": 3}, "max_size.*0 to the number of units, 2, got 3"),
        (TWO, TWO, {"max_size": -1}, "max_size.*-1"),
        (TWO, TWO, {"max_size": True}, "max_size.*True"),
    ],
)
def test_bad_input_is_named(sets: Any, flipped: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        count_contingencies(sets, flipped, **options)


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("sets", TWO.int(), "sets: expected dtype bool, got int32"),
        ("sets", TWO[0], "sets: expected 2 dimensions"),
        ("sets", TWO.T, "sets: expected contiguous"),
        ("flipped", torch.cat([TWO, TWO]), r"flipped: expected shape \[2, 2\]"),
        ("flipped", TWO.T, "flipped: expected contiguous"),
        ("counts", torch.zeros(2, 3, 2, dtype=torch.int64), r"counts: expected shape \[2, 2, 2\]"),
        ("counts", torch.zeros(2, 2, 2), "counts: expected dtype int64, got float32"),
        ("first", torch.zeros(3, 2, dtype=torch.int64), r"first: expected shape \[2, 2\]"),
    ],
)
def test_the_extension_checks_for_itself(name: str, bad: Tensor, words: str) -> None:
    tensors = {
        "sets": TWO,
        "flipped": TWO,
        "counts": torch.zeros(2, 2, 2, dtype=torch.int64),
        "first": torch.zeros(2, 2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=words):
        _native.count_contingencies(**{**tensors, name: bad}, threads=1)


def test_equal_rows_among_many_are_named() -> None:
    sets = some_sets(40, 3, 3000)
    sets[2711] = sets[35]
    with pytest.raises(InvalidArgumentError, match="rows 35 and 2711"):
        count_contingencies(sets, torch.zeros(3000, 1, dtype=torch.bool))
