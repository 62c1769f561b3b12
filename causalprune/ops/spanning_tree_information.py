"""Conditional mutual information between layers, from Euclidean minimum spanning trees."""

from __future__ import annotations

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.histogram_information import check_samples
from causalprune.ops.registration import register_operator

__all__ = ["spanning_tree_crossings", "spanning_tree_information"]


def spanning_tree_information(
    children: Tensor, parents: Tensor, *, child_block: int = 1, parent_block: int = 1
) -> Tensor:
    """Geometric conditional mutual information of children and parents, given other parents.

    ``max(0, 1 - R / m)`` with R from :func:`spanning_tree_crossings` and ``m = N // 3``: between
    0 (independent given the other parents) and 1. No number of bits or nats, but ordered like one.
    Independent pairs come out a few hundredths above 0, more where a child is nearly a function of
    other parents, and with many parents a few hundred samples hardly tell pairs apart: the nearest
    neighbour in a wide layer is far away.

    Parameters
    ----------
    children : Tensor [N, C], float32, CPU or CUDA
        Rows in an order drawn at random; columns standardised, because distances add them up.
    parents : Tensor [N, P], float32, on the device of `children`
        Rows paired with those of `children`.
    child_block, parent_block : int
        Columns that form one variable: contiguous, the last block may be shorter.

    Returns
    -------
    Tensor [child blocks, parent blocks], float64, on the device of `children`

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) as :func:`spanning_tree_crossings`.

    Examples
    --------
    >>> import torch
    >>> from causalprune.ops import spanning_tree_information
    >>> parents, noise = torch.randn(2, 900, 2, generator=torch.Generator().manual_seed(0))
    >>> children = (parents + 0.5 * noise)[:, :1]
    >>> known, unknown = spanning_tree_information(children, parents)[0]
    >>> bool(known > 0.2), bool(unknown < 0.2)
    (True, True)
    """
    found = spanning_tree_crossings(
        children, parents, child_block=child_block, parent_block=parent_block
    )
    return (1 - found / (len(children) // 3)).clamp(min=0)


def spanning_tree_crossings(
    children: Tensor, parents: Tensor, *, child_block: int = 1, parent_block: int = 1
) -> Tensor:
    """Edges of each pair's minimum spanning tree that join samples with replaced ones.

    With ``m = N // 3``, rows ``S0 = [0, m)``, ``S1 = [m, 2 m)``, ``S2 = [2 m, 3 m)``: for a child
    block X and a parent block Y, Z being all other parents, the Y of every row in S1 is replaced
    by that of its nearest neighbour in Z within S2 (which makes X and Y independent given Z), and
    the edges of the Euclidean minimum spanning tree over (X, Y, Z) of S0 and S1 that join the two
    are counted: about m where X is independent of Y given Z, few where not.

    Parameters
    ----------
    children, parents, child_block, parent_block
        As in :func:`spanning_tree_information`. CUDA tensors are computed on the CPU.

    Returns
    -------
    Tensor [child blocks, parent blocks], float64, on the device of `children`
        Whole numbers from 1 to ``2 m - 1``. The same for any number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) for a wrong dtype, shape or device, fewer than 6 samples, blocks below
        1, and values that are not finite or beyond 1e12.

    Notes
    -----
    Source: the geometric estimator of Yasaei Sekeh and Hero (2019) as MINT (Ganesh, Corso, Sekeh
    2020) uses it, by its definition. Dense Prim, O(m^2) a pair; memory ``5 m^2`` floats and
    ``4 m^2`` for each thread, whatever the number of pairs. Without other parents, and among
    equally near neighbours, the neighbour is the next in S2 behind the row's own place. Equal to
    :func:`causalprune.reference.spanning_tree_crossings` but where two distances are equal to
    within float32. Not differentiable.

    Examples
    --------
    >>> import torch
    >>> from causalprune.ops import spanning_tree_crossings
    >>> spanning_tree_crossings(torch.zeros(6, 1), torch.arange(6.0)[:, None]).shape
    torch.Size([1, 1])
    """
    check_samples(children=children, parents=parents)
    for name, block in (("child_block", child_block), ("parent_block", parent_block)):
        if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block < 2**31:
            raise InvalidArgumentError(f"{name}: expected an int of at least 1, got {block!r}")
    try:
        found: Tensor = torch.ops.causalprune.spanning_tree_crossings(
            children, parents, child_block, parent_block
        )
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return found


def _fake(children: Tensor, parents: Tensor, child_block: int, parent_block: int) -> Tensor:
    blocks = (-(-children.shape[1] // child_block), -(-parents.shape[1] // parent_block))
    return children.new_empty(blocks, dtype=torch.float64)


def _cpu(children: Tensor, parents: Tensor, child_block: int, parent_block: int) -> Tensor:
    crossings = _fake(children, parents, child_block, parent_block)
    _native.spanning_tree_crossings(
        children, parents, crossings, child_block, parent_block, torch.get_num_threads()
    )
    return crossings


def _cuda(children: Tensor, parents: Tensor, child_block: int, parent_block: int) -> Tensor:
    return _cpu(children.cpu(), parents.cpu(), child_block, parent_block).to(children.device)


register_operator(
    "spanning_tree_crossings",
    "(Tensor children, Tensor parents, int child_block, int parent_block) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="it counts edges; call it under torch.no_grad()",
)
