"""Data-free causal pruning: the information that noise at the input carries along each edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnknownNameError
from causalprune.graph import ConsumerSite
from causalprune.ops import histogram_information
from causalprune.scoring.adjacency import (
    Adjacency,
    adjacencies,
    adjacent_activations,
    by_unit,
)
from causalprune.scoring.methods import Job, MethodResult, UnitScores, register_method
from causalprune.scoring.moment_walk import MomentWalk
from causalprune.scoring.moments import Moments, channel_moments

__all__ = ["datafree"]

MODES = ("closed_form", "histogram")

LARGEST_SHARE = 1.0 - 1e-12
"""Where rho^2 is clipped: an only parent has 13.8 nats, not infinitely many."""

NOISE_BATCH = 256


@register_method("datafree", needs_data=False, needs_labels=False, outcomes=())
def datafree(
    job: Job, *, mode: str = "closed_form", n_noise: int = 10_000, bins: int = 64
) -> MethodResult:
    r"""Mutual information between adjacent units under noise of maximum entropy at the input.

    *Reconstructed* from Ferianc, Sankaran, Mastropietro, Saboori and Cappart (2021): the published
    description leaves choices open, which are made as follows.

    ``mode="closed_form"``: the input is independent standard Gaussian noise (of all distributions
    of that mean and variance the one of maximum entropy) and channels are taken as independent.
    Along the traced network mean and variance of every channel are propagated
    (:class:`causalprune.scoring.moment_walk.MomentWalk`); at a layer with weight W,

    .. math:: E_{oi} = \|W_{oi}\|_F^2\, v_i, \quad \rho^2_{oi} = E_{oi} / \sum_i E_{oi}, \quad
              MI_{oi} = -\tfrac12 \log(1 - \rho^2_{oi}) \text{ nats}.

    ``mode="histogram"``: `n_noise` noise images, drawn from the job's seed, run through the real
    network; maps are averaged over positions where a layer reads them and where it puts them out,
    and MI is that of the joint histogram (`bins` bins of equal width a side, bits).

    Either way a unit's importance is its outgoing effect, the sum of MI over the outputs of all
    layers that read it. ``edges``: MI [O, P] of every such layer, P being its inputs, or units
    where one unit occupies several inputs (a flattened map). To prune in the original's order, the
    lowest of each layer first, score again after every step.

    Parameters
    ----------
    job : Job
        Only the shape of the data is read.
    mode : {"closed_form", "histogram"}
    n_noise : int
        Noise images, at least 2.
    bins : int
        2 to 256.

    Raises
    ------
    InvalidArgumentError
        If an option is out of range.
    UnsupportedModelError
        If an operator has no rule for its moments, by name (closed form), or the network could
        not be traced.

    Notes
    -----
    Weak points. Real inputs are far from noise of mean 0 and variance 1, most of all skewed ones
    such as MNIST's. Channels, and positions of one channel, are not independent: errors of the
    closed form grow with depth, and after a residual addition its two branches are not independent
    either. Positions at a padded border are taken as any other. rho^2 leaves the bias out: a unit
    that is constant scores 0. In histogram mode the estimate is biased upwards by about
    ``(bins in use - 1)^2 / (2 n_noise ln 2)`` bits, the same for all edges of alike marginals;
    averaging over positions leaves little variation in deep layers.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from causalprune.scoring import score
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.eye(2)), model[2].weight.copy_(torch.ones(1, 2))
    >>> scores = score(model, torch.zeros(1, 2), "datafree")
    >>> [round(value, 4) for value in scores.frame["importance"]]    # log(2) / 2 nats each
    [0.3466, 0.3466]
    """
    _check(mode, n_noise)
    layers = adjacencies(job.model, job.graph, "datafree")
    edges = (
        _closed_form(job, layers) if mode == "closed_form" else _sampled(job, layers, n_noise, bins)
    )
    sums = by_unit(job.graph, ((a, edges[a.site.layer].sum(0)) for a in layers))
    n = 0 if mode == "closed_form" else n_noise
    return MethodResult(
        {name: UnitScores(total, n=n, cost=n / job.n_units) for name, total in sums.items()},
        edges=edges,
        notes=("datafree is a reconstruction: inputs, channels and positions as independent",),
    )


def _check(mode: str, n_noise: int) -> None:
    if mode not in MODES:
        raise UnknownNameError("mode of datafree", mode, MODES)
    if not isinstance(n_noise, int) or isinstance(n_noise, bool) or n_noise < 2:
        raise InvalidArgumentError(f"n_noise: expected an int of at least 2, got {n_noise!r}")


# ---- closed form ---------------------------------------------------------------------------------


def _closed_form(job: Job, layers: list[Adjacency]) -> dict[str, Tensor]:
    example = job.batches.example[:1]
    edges: dict[str, Tensor] = {}

    def watch(adjacency: Adjacency) -> Callable[[Moments], None]:
        def see(value: Moments) -> None:
            variance = channel_moments(value, adjacency.axis)[1]
            edges[adjacency.site.layer] = _information(adjacency, variance)

        return see

    traced = job.trace()
    walk = MomentWalk(traced, {a.site.node: watch(a) for a in layers})
    shape = example.shape
    walk.run(
        Moments(
            torch.zeros((), dtype=torch.float64).expand(shape),
            torch.ones((), dtype=torch.float64).expand(shape),
        )
    )
    return {a.site.layer: edges[a.site.layer] for a in layers}


def _information(adjacency: Adjacency, variance: Tensor) -> Tensor:
    """MI [O, P], nats, of a layer whose input channels have these variances [I]."""
    energy = adjacency.parents(_squares(adjacency.module) * variance)
    total = energy.sum(1, keepdim=True)
    share = torch.where(total > 0, energy / total, torch.zeros_like(energy))
    return -0.5 * torch.log1p(-share.clamp(max=LARGEST_SHARE))


def _squares(module: nn.Conv2d | nn.Linear) -> Tensor:
    """Squared norm of every kernel, [O, I], float64; zero between groups of a convolution."""
    weight = module.weight.detach().double().cpu()
    squares = weight.square().reshape(*weight.shape[:2], -1).sum(2)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    n_outputs, n_inputs = squares.shape
    whole = squares.new_zeros(n_outputs, n_inputs * groups)
    for group in range(groups):
        rows = slice(group * n_outputs // groups, (group + 1) * n_outputs // groups)
        whole[rows, group * n_inputs : (group + 1) * n_inputs] = squares[rows]
    return whole


# ---- histograms of noise -------------------------------------------------------------------------


def _sampled(job: Job, layers: list[Adjacency], n_noise: int, bins: int) -> dict[str, Tensor]:
    example = job.batches.example[:1]
    generator = torch.Generator().manual_seed(job.seed)

    def noise() -> Iterator[Tensor]:
        with job.bar("noise images", -(-n_noise // NOISE_BATCH)) as advance:
            for start in range(0, n_noise, NOISE_BATCH):
                size = (min(NOISE_BATCH, n_noise - start), *example.shape[1:])
                images = torch.randn(size, generator=generator)
                yield images.to(example.device, example.dtype)
                advance()

    seen: Mapping[str, tuple[Tensor, Tensor]] = adjacent_activations(
        job.trace(), layers, _output, noise()
    )
    return {
        layer: histogram_information(parents.float(), children.float(), bins)
        for layer, (children, parents) in seen.items()
    }


def _output(site: ConsumerSite) -> str:
    return site.node
