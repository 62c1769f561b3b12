"""spanning_tree_crossings against scipy's trees, and what the information tells."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from causalprune import reference
from causalprune.errors import InvalidArgumentError
from causalprune.ops import spanning_tree_crossings, spanning_tree_information


def samples(n: int, n_children: int, n_parents: int) -> tuple[Tensor, Tensor]:
    parents = torch.randn(n, n_parents)
    children = torch.randn(n, n_children)
    children[:, 0] += 2 * parents[:, 0]
    return children, parents


SIZES = [(6, 1, 1), (7, 2, 3), (46, 1, 15), (97, 3, 2), (145, 2, 5), (200, 1, 33)]


@pytest.mark.parametrize(("n", "n_children", "n_parents"), SIZES)
def test_counts_the_edges_of_scipys_trees(
    isa: str, n: int, n_children: int, n_parents: int
) -> None:
    children, parents = samples(n, n_children, n_parents)
    got = spanning_tree_crossings(children, parents)
    assert torch.equal(got, reference.spanning_tree_crossings(children, parents))


@pytest.mark.parametrize("blocks", [(2, 1), (1, 3), (4, 4), (2, 5)])
def test_blocks(isa: str, blocks: tuple[int, int]) -> None:
    children, parents = samples(90, 5, 7)
    options = {"child_block": blocks[0], "parent_block": blocks[1]}
    got = spanning_tree_crossings(children, parents, **options)
    assert got.shape == (-(-5 // blocks[0]), -(-7 // blocks[1]))
    assert torch.equal(got, reference.spanning_tree_crossings(children, parents, **options))


def test_planted_parents_first_and_independent_ones_near_zero() -> None:
    children, parents = samples(1800, 2, 3)
    children = children / children.std(0)
    found = spanning_tree_information(children, parents)
    assert found[0].argmax() == 0
    # Over sixty draws: 0.25 and more; 1.6 times the others and more; 0.13 and less.
    assert found[0, 0] > 0.17 and found[0, 0] > 1.2 * found[0, 1:].max()
    assert found[1].max() < 0.17


def test_conditioning_explains_a_common_cause_away() -> None:
    # The second parent knows the child only through the first. One draw scatters: eight of them.
    total = torch.zeros(3, dtype=torch.float64)
    for _ in range(8):
        first = torch.randn(1800)
        parents = torch.stack([first, first + 0.5 * torch.randn(1800)], 1)
        children = (first + 0.5 * torch.randn(1800))[:, None]
        parents, children = parents / parents.std(0), children / children.std(0)
        both = spanning_tree_information(children, parents)[0]
        alone = spanning_tree_information(children, parents[:, 1:])[0]
        total += torch.cat([both, alone]).double()
    direct, indirect, alone = total
    assert indirect < 0.7 * direct and indirect < 0.6 * alone


def test_rows_are_paired() -> None:
    # Shuffling the children against the parents must destroy what they know.
    children, parents = samples(1500, 1, 2)
    children = children / children.std(0)
    shuffled = children[torch.randperm(1500)]
    # Over sixty draws: 0.28 and more, 0.13 and less.
    assert spanning_tree_information(children, parents)[0, 0] > 0.2
    assert spanning_tree_information(shuffled, parents)[0, 0] < 0.2


def test_strides_and_threads_and_sets_change_nothing(isa: str) -> None:
    children, parents = samples(700, 3, 6)
    once = spanning_tree_crossings(children, parents)
    assert torch.equal(spanning_tree_crossings(children.T.contiguous().T, parents), once)
    wide = torch.randn(700, 12)
    wide[:, ::2] = parents
    assert torch.equal(spanning_tree_crossings(children, wide[:, ::2]), once)
    torch.set_num_threads(3)
    assert torch.equal(spanning_tree_crossings(children, parents), once)


def test_dead_parents_and_duplicates_are_paired_at_random() -> None:
    # Nothing but ties: the neighbours must not all be one row.
    parents = torch.zeros(600, 2)
    parents[:, 0] = torch.randn(600)
    children = torch.randn(600, 1)
    assert spanning_tree_information(children, parents)[0, 0] < 0.2


def test_opcheck() -> None:
    children, parents = samples(30, 3, 4)
    operator = torch.ops.causalprune.spanning_tree_crossings.default
    torch.library.opcheck(operator, (children, parents, 1, 1))
    torch.library.opcheck(operator, (children.T.contiguous().T, parents, 2, 3))
    with FakeTensorMode():
        fake = spanning_tree_information(torch.empty(9, 3), torch.empty(9, 5), parent_block=2)
    assert fake.shape == (3, 3) and fake.dtype == torch.float64


def test_has_no_derivative() -> None:
    children, parents = samples(20, 2, 2)
    with pytest.raises(NotImplementedError, match="spanning_tree_crossings has no derivative"):
        spanning_tree_crossings(children.requires_grad_(), parents).sum().backward()


BROKEN = torch.zeros(9, 2)
BROKEN[7, 1] = math.inf


@pytest.mark.parametrize(
    ("children", "parents", "options", "words"),
    [
        (torch.zeros(5, 2), torch.zeros(5, 2), {}, "children.*6 samples.*5"),
        (torch.zeros(9, 2), torch.zeros(8, 2), {}, "parents.*9 samples.*8"),
        (torch.zeros(9, 2), BROKEN, {}, r"parents.*inf.*\[7, 1\]"),
        (torch.zeros(9, 2) + 1e13, BROKEN, {}, r"children.*1e\+12.*\[0, 0\]"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"child_block": 0}, "child_block.*0"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"parent_block": 1.5}, "parent_block.*1.5"),
        (torch.zeros(9, 2).half(), torch.zeros(9, 2), {}, "children.*float32.*float16"),
    ],
)
def test_bad_input_is_named(
    children: Tensor, parents: Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        spanning_tree_crossings(children, parents, **options)
