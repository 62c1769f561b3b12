"""MINT: mutual-information-based neuron trimming between adjacent layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from causalprune.errors import DataError, InvalidArgumentError, UnknownNameError
from causalprune.graph import ConsumerSite
from causalprune.ops import spanning_tree_information
from causalprune.scoring.adjacency import (
    Adjacency,
    adjacencies,
    adjacent_activations,
    by_unit,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method

__all__ = ["gaussian_information", "mint"]

ESTIMATORS = ("gaussian", "mst")

RIDGE = 1e-2
"""Added to the covariance of standardised activations."""


@register_method("mint", outcomes=())
def mint(
    job: Job,
    *,
    estimator: str = "gaussian",
    samples_per_class: int = 250,
    group_size: int = 1,
    n_groups: int | None = None,
) -> MethodResult:
    """Conditional mutual information of each unit with the layers that read it (MINT).

    For every layer that reads units, parents P [N, I] are its input units and children X [N, O]
    its outputs as the next layer sees them: behind the batch norm, shortcut and activation that
    follow (straight behind the layer, a linear function of P can tell nothing of noise). Maps are
    averaged over positions, columns standardised, rows are images, as many of every class: the
    first `samples_per_class` of each in the order of the data. The score of a connection is
    ``I[c, p] = I(X_c; P_p | all other parents)``, for contiguous groups of units as for units.

    A unit's importance is the sum of I[c, p] over the children of all layers that read it; with
    groups, that of its group. ``edges``: I [O, P] of every layer, P being its inputs, or units
    where one unit occupies several inputs; members of a group share its value.
    :func:`causalprune.scoring.mint_masks` turns them into masks.

    Parameters
    ----------
    job : Job
        Needs class indices; the outcome itself is not used.
    estimator : {"gaussian", "mst"}
        ``"gaussian"``: closed form for jointly Gaussian activations, nats
        (:func:`gaussian_information`). ``"mst"``: the paper's geometric estimator, 0 to 1
        (:func:`causalprune.ops.spanning_tree_information`), rows shuffled by the job's seed;
        n^2 work for each pair, so fewer samples.
    samples_per_class : int
        A class with fewer images gives what it has, and a note says so.
    group_size : int
        Units in a group, contiguous in the layer; the last group may be smaller.
    n_groups : int, optional
        Cut every layer into this many groups instead.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range.
    DataError
        If a class of the network has no image, by its index, or there are too few images.
    UnsupportedModelError
        If the network could not be traced.

    Notes
    -----
    Source: Ganesh, Corso, Sekeh (2020), "MINT: Deep network compression via mutual
    information-based neuron trimming", section 3; the Gaussian estimator is ours. Pairs that no
    weight ties (groups of a convolution) score 0. A unit that is constant over the images has no
    information to give and scores 0. Put a random choice of groups at the same sparsity beside
    every figure: :func:`causalprune.scoring.random_masks` for masked blocks, ``method="random"``
    for whole units.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight[:, 1].zero_()    # nobody listens to hidden unit 1
    >>> scores = score(model, (torch.randn(200, 4), torch.arange(200) % 2), "mint")
    >>> int(scores.frame["importance"].argmin())
    1
    """
    _check_options(estimator, samples_per_class, group_size, n_groups)
    layers = adjacencies(job.model, job.graph, "mint")
    images, notes = _balanced(job, samples_per_class)
    with job.bar("activations", None) as advance:
        traced = job.trace()
        seen = adjacent_activations(traced, layers, _behind, _batches(images, advance))
    wide = [a.site.layer for a in layers if a.n_parents >= len(images)]
    if wide and estimator == "gaussian":
        more = f" and {len(wide) - 3} more layers" if len(wide) > 3 else ""
        named = ", ".join(wide[:3]) + more
        notes += (f"no more images than parents, so mostly ridge: {named}",)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(job.seed))
    edges = {}
    with job.bar("mutual information", len(layers)) as advance:
        for a in layers:
            children, parents = (_standardised(side)[order] for side in seen[a.site.layer])
            edges[a.site.layer] = _scores(a, children, parents, estimator, group_size, n_groups)
            advance()
    totals = by_unit(job.graph, ((a, _importance(a, edges, group_size, n_groups)) for a in layers))
    n, cost = len(images), len(images) / job.n_units
    units = {name: UnitScores(total, n=n, cost=cost) for name, total in totals.items()}
    return MethodResult(units, edges, notes)


def gaussian_information(
    children: Tensor, parents: Tensor, *, child_block: int = 1, parent_block: int = 1
) -> Tensor:
    """Conditional mutual information of children and parents, given the other parents.

    For jointly Gaussian columns, from ``S = covariance + 1e-2 I`` of ``[children, parents]``:
    with ``L = S_PP^-1``, ``B = S_XP L`` and ``R = S_XX - B S_PX``,
    ``I[c, p] = log1p(B_cp^2 / (R_cc L_pp)) / 2``, and ``logdet(I + R_cc^-1 B_cp L_pp^-1 B_cp')/2``
    for blocks. O(N C^2 + C^3) for all pairs together.

    Parameters
    ----------
    children : Tensor [N, C]
        Standardised columns.
    parents : Tensor [N, P]
        Rows paired with those of `children`.
    child_block, parent_block : int
        Columns that form one variable: contiguous, the last block may be shorter.

    Returns
    -------
    Tensor [child blocks, parent blocks], float64, nats

    Examples
    --------
    >>> import torch
    >>> parents = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> gaussian_information(parents[:, :1] + parents[:, 1:2], parents).argmin().item()
    2
    """
    x, p = children.double(), parents.double()
    n_children = x.shape[1]
    joint = torch.cat([x, p], 1)
    joint = joint - joint.mean(0)
    s = joint.T @ joint / len(joint) + RIDGE * torch.eye(joint.shape[1], dtype=torch.float64)
    s_xp, s_pp = s[:n_children, n_children:], s[n_children:, n_children:]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(s_pp))
    b = s_xp @ inverse
    rest = s[:n_children, :n_children] - b @ s_xp.T
    if child_block == parent_block == 1:
        scale = rest.diagonal()[:, None] * inverse.diagonal()[None]
        return 0.5 * torch.log1p(b.square() / scale)
    rows = []
    for start in range(0, n_children, child_block):
        c = slice(start, start + child_block)
        left = torch.linalg.cholesky(rest[c, c])
        row = []
        for first in range(0, p.shape[1], parent_block):
            at = slice(first, first + parent_block)
            right = torch.linalg.cholesky(inverse[at, at])
            # With R = l l' and L = r r': I + m m' for m = l^-1 B r^-T has the determinant sought.
            m = torch.linalg.solve_triangular(left, b[c, at], upper=False)
            m = torch.linalg.solve_triangular(right, m.T, upper=False).T
            singular = torch.linalg.svdvals(m)
            row.append(0.5 * torch.log1p(singular.square()).sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


# ---- the images ----------------------------------------------------------------------------------


def _check_options(
    estimator: str, samples_per_class: int, group_size: int, n_groups: int | None
) -> None:
    if estimator not in ESTIMATORS:
        raise UnknownNameError("estimator of mint", estimator, ESTIMATORS)
    whole = {"samples_per_class": samples_per_class, "group_size": group_size}
    if n_groups is not None:
        whole["n_groups"] = n_groups
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgumentError(f"{name}: expected a positive integer, got {value!r}")
    if n_groups is not None and group_size != 1:
        raise InvalidArgumentError("n_groups: expected without group_size, got both")


def _balanced(job: Job, samples_per_class: int) -> tuple[Tensor, tuple[str, ...]]:
    """Return the first images of every class, in the order of the data, and what to note."""
    with torch.no_grad():
        n_classes = int(job.model(job.batches.example).shape[-1])
    count = torch.zeros(n_classes, dtype=torch.int64)
    chosen: list[Tensor] = []
    for batch in job.batches.labelled():
        assert batch.targets is not None
        picked = []
        for row, target in enumerate(batch.targets.tolist()):
            if target >= n_classes:
                raise DataError(
                    f"data: expected targets below {n_classes}, the network's outputs, got {target}"
                )
            if count[target] < samples_per_class:
                count[target] += 1
                picked.append(row)
        chosen.append(batch.inputs[picked])
        if int(count.min()) == samples_per_class:
            break
    absent = (count == 0).nonzero().flatten().tolist()
    if absent:
        raise DataError(
            "data: mint compares classes in equal numbers, expected images of every class, "
            f"got none of {', '.join(map(str, absent))}"
        )
    images = torch.cat(chosen)
    if len(images) < 6:
        raise DataError(f"data: mint needs at least 6 images, got {len(images)}")
    few = [f"{c} ({int(count[c])})" for c in range(n_classes) if count[c] < samples_per_class]
    note = f"classes with fewer than {samples_per_class} images: {', '.join(few)}"
    return images, (note,) if few else ()


def _batches(images: Tensor, advance: object) -> Iterator[Tensor]:
    assert callable(advance)
    for start in range(0, len(images), 256):
        yield images[start : start + 256]
        advance()


def _behind(site: ConsumerSite) -> str:
    return site.out


def _standardised(columns: Tensor) -> Tensor:
    """Mean 0 and variance 1; columns that do not vary are 0."""
    centred = columns - columns.mean(0)
    spread = centred.square().mean(0).sqrt()
    # What rounding leaves of a constant is no variation.
    dead = spread <= 1e-12 * columns.abs().amax(0)
    return torch.where(dead, torch.zeros_like(centred), centred / spread)


# ---- the scores ----------------------------------------------------------------------------------


def _blocks(a: Adjacency, group_size: int, n_groups: int | None) -> tuple[int, int]:
    """Children and parents in a group."""
    if n_groups is None:
        return group_size, group_size
    return -(-a.n_children // n_groups), -(-a.n_parents // n_groups)


def _scores(
    a: Adjacency,
    children: Tensor,
    parents: Tensor,
    estimator: str,
    group_size: int,
    n_groups: int | None,
) -> Tensor:
    """I [O, P]: the score of each pair's groups."""
    child_block, parent_block = _blocks(a, group_size, n_groups)
    if estimator == "gaussian":
        blocks = gaussian_information(
            children, parents, child_block=child_block, parent_block=parent_block
        )
    else:
        blocks = spanning_tree_information(
            children.float(), parents.float(), child_block=child_block, parent_block=parent_block
        )
    spread = blocks.repeat_interleave(child_block, 0).repeat_interleave(parent_block, 1)
    spread = spread[: a.n_children, : a.n_parents]
    varies = (parents != 0).any(0)[None] & (children != 0).any(0)[:, None]
    if child_block > 1 or parent_block > 1:
        varies = torch.ones_like(varies)
    return torch.where(a.connected() & varies, spread, torch.zeros_like(spread))


def _importance(
    a: Adjacency, edges: Mapping[str, Tensor], group_size: int, n_groups: int | None
) -> Tensor:
    """Sum over groups of children [P]: every group counts once, however many children it has."""
    child_block, _ = _blocks(a, group_size, n_groups)
    return edges[a.site.layer][::child_block].sum(0)
