"""Means of exact effects from a sample of images, helped by cheap effects on all images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from causalprune.errors import InvalidArgumentError, UnknownNameError

__all__ = ["POPULATIONS", "MeanEstimate", "SamplingDesign", "estimate_mean", "sampling_sizes"]

POPULATIONS = ("distribution", "images")
"""What a mean is of: the distribution that the images were drawn from, or the images at hand."""

UNIFORM_SHARE = 0.2
"""Weight of uniform sampling in the mixture: sizes without any information then cost at most a
factor ``sqrt(5)`` of width, while sizes that know the few large effects save several times it."""

_MOST_LEVERAGE = 0.95


@dataclass(frozen=True)
class SamplingDesign:
    """One random order of the images; the sample of size n is its first n.

    Sequential Poisson sampling (Ohlsson 1998): image i has the rank ``u_i / size_i``, u uniform;
    the first n are a sample without replacement in which image i is with probability
    ``min(1, c_n * size_i)``. Growing samples contain each other, and equal sizes give simple
    random samples.

    Attributes
    ----------
    order : Tensor [N], int64
        Images in the order in which they enter.
    sizes : Tensor [N], float64
        Positive, in the order of `order`.
    """

    order: Tensor
    sizes: Tensor

    @classmethod
    def draw(cls, sizes: Tensor, seed: int) -> SamplingDesign:
        """Draw an order; `sizes` [N] are positive, up to a common factor.

        Raises
        ------
        InvalidArgumentError
            If a size is not positive and finite.

        Examples
        --------
        >>> design = SamplingDesign.draw(torch.tensor([1.0, 1.0, 100.0, 1.0]), seed=0)
        >>> design.probabilities(2)[design.order.argsort()]  # in the order of the images
        tensor([0.3333, 0.3333, 1.0000, 0.3333], dtype=torch.float64)
        """
        sizes = sizes.detach().to("cpu", torch.float64)
        if sizes.ndim != 1 or not bool(((sizes > 0) & sizes.isfinite()).all()):
            raise InvalidArgumentError("sizes: expected positive finite numbers [N]")
        generator = torch.Generator().manual_seed(seed)
        ranks = torch.rand(len(sizes), generator=generator, dtype=torch.float64) / sizes
        order = ranks.argsort(stable=True)
        return cls(order, sizes[order])

    def probabilities(self, n: int) -> Tensor:
        """Probability [N], float64, of each image (in the order) to be among the first n."""
        n_images = len(self.sizes)
        if not 1 <= n <= n_images:
            raise InvalidArgumentError(f"n: expected 1 to {n_images} images, got {n}")
        probability = torch.ones(n_images, dtype=torch.float64)
        if n == n_images:
            return probability
        certain = torch.zeros(n_images, dtype=torch.bool)
        while True:
            free = ~certain
            share = (n - int(certain.sum())) / self.sizes[free].sum()
            probability[free] = share * self.sizes[free]
            over = free & (probability >= 1)
            if not bool(over.any()):
                return probability
            certain |= over
            probability[over] = 1.0


def sampling_sizes(surrogate: Tensor) -> Tensor:
    """Size [N] of each image: how large its cheap effects are, in a mixture with uniform sizes.

    Parameters
    ----------
    surrogate : Tensor [N, n_units]
        Cheap effects. Every unit counts alike: its effects are divided by their root mean square.
    """
    scale = surrogate.square().mean(0).sqrt()
    relative = torch.where(scale > 0, surrogate / scale.clamp_min(1e-300), 0.0)
    sizes = relative.square().mean(1).sqrt()
    mean = float(sizes.mean())
    if mean == 0:
        return torch.ones_like(sizes)
    return UNIFORM_SHARE + (1 - UNIFORM_SHARE) * sizes / mean


@dataclass(frozen=True)
class MeanEstimate:
    """Means of exact effects [n_units], all float64.

    Attributes
    ----------
    mean, se, low, high : Tensor [n_units]
    slope : Tensor [n_units]
        Lambda, 0 without a surrogate.
    degrees : Tensor [n_units]
        Degrees of freedom of the t quantile.
    heaviest : Tensor [n_units]
        Share of the variance that the one image with the largest residual contributes; close to
        1 where hardly any image tells how uncertain the mean is.
    """

    mean: Tensor
    se: Tensor
    low: Tensor
    high: Tensor
    slope: Tensor
    degrees: Tensor
    heaviest: Tensor

    @classmethod
    def of_guess(cls, mean: Tensor) -> MeanEstimate:
        """Wrap means [n_units] of cheap effects, before there is any exact one."""
        se, low, high = torch.full((3, len(mean)), torch.nan, dtype=torch.float64)
        slope, degrees, heaviest = torch.zeros(3, len(mean), dtype=torch.float64)
        return cls(mean, se, low, high, slope, degrees, heaviest)

    def without_interval(self) -> MeanEstimate:
        """Return the means alone."""
        unknown = torch.full_like(self.mean, torch.nan)
        return replace(self, se=unknown, low=unknown, high=unknown)


def estimate_mean(
    exact: Tensor,
    probabilities: Tensor,
    surrogate: Tensor | None = None,
    *,
    confidence: float = 0.95,
    population: str = "distribution",
) -> MeanEstimate:
    r"""Estimate the mean of exact effects e from n of N images, with cheap effects s of all N.

    .. math:: \hat\theta = \lambda \bar s_N + \sum_L w_i (e_i - \lambda s_i) / \sum_L w_i,
        \qquad w_i = 1 / \pi_i

    Unbiased for any fixed lambda (up to the ratio's O(1/n)). Because the sampled images are among
    the N, the lambda of least variance is ``cov(e, s) / var(s)`` and the variance
    ``(1 - n/N) var(e - lambda s) / n`` for the mean over the N images; over the distribution
    that they were drawn from ``var(e) / N`` comes on top. (The factor ``1 + n/N`` of
    prediction-powered inference belongs to cheap effects of *other* images.) Lambda is estimated
    on the sample, which the variance, the jackknife's, pays for (residuals over one minus their
    leverage), or what the cheap effects predict of images that were not sampled, where that is
    more. Effects are skewed and heavy tailed, so the degrees of freedom are Satterthwaite's,
    from the kurtosis of the residuals, instead of n - 2. (Corrections for skewness were tried and
    left out: they lose coverage where large effects of both signs occur.)

    Measured coverage of 95 % intervals: 93 to 97 % for effects of a moderate tail (kurtosis of
    some ten) from n = 64 on, with a surrogate often from 32. It falls below 90 % where a handful
    of the N images carries nearly all of an effect, as with the loss on images that the network
    has fitted: no sample of that size knows its own tail (see ``heaviest``).

    Parameters
    ----------
    exact : Tensor [n, n_units]
        Effects of the sampled images.
    probabilities : Tensor [N]
        Inclusion probabilities of all images, from :meth:`SamplingDesign.probabilities`; the
        first n belong to the sampled ones.
    surrogate : Tensor [N, n_units], optional
        Cheap effects, in the same order.
    confidence : float
    population : str
        ``"distribution"`` or ``"images"``.

    Returns
    -------
    MeanEstimate
        On the CPU; NaN interval where n is below 2 (3 with a surrogate).

    Raises
    ------
    UnknownNameError
        If there is no such population.

    References
    ----------
    Angelopoulos et al. (2023), "PPI++"; Sarndal, Swensson and Wretman (1992), chapter 6
    (regression estimator under unequal probabilities).

    Examples
    --------
    >>> s = torch.arange(100.0, dtype=torch.float64)[:, None]
    >>> found = estimate_mean(2 * s[:10] + 1, torch.full((100,), 0.1), s, population="images")
    >>> round(found.mean.item(), 6), found.se.item() < 1e-6  # linear in s: nothing is uncertain
    (100.0, True)
    """
    if population not in POPULATIONS:
        raise UnknownNameError("population", population, POPULATIONS)
    exact = exact.detach().to("cpu", torch.float64)
    n, n_images = len(exact), len(probabilities)
    everywhere = probabilities.to(torch.float64)[:, None]
    chance = everywhere[:n]
    weight = 1 / chance
    weight = weight / weight.sum()
    centred = exact - (weight * exact).sum(0)
    if surrogate is None:
        mean = (weight * exact).sum(0)
        slope = torch.zeros_like(mean)
        influence, used = weight * centred / (1 - weight), 1
    else:
        surrogate = surrogate.to("cpu", torch.float64)
        slope, pull, leverage = _regression(exact, surrogate[:n], chance)
        difference = exact - slope * surrogate[:n]
        offset = (weight * difference).sum(0)
        mean = slope * surrogate.mean(0) + offset
        gap = surrogate.mean(0) - (weight * surrogate[:n]).sum(0)
        residual = (difference - offset) / (1 - leverage.clamp_max(_MOST_LEVERAGE))
        influence, used = (weight + gap * pull) * residual, 2
    # What each sampled image contributes to the variance: the jackknife's squares.
    terms = (1 - chance) * influence.square() * ((n - 1) / n)
    if surrogate is not None:
        least = _modelled_variance(residual, surrogate, everywhere)
        terms = terms * (least / terms.sum(0).clamp_min(1e-300)).clamp_min(1.0)
    if population == "distribution":
        terms = terms + weight * centred.square() / n_images * (n / max(n - 1, 1))
    if n <= used:
        terms = torch.full_like(terms, torch.nan)
    variance = terms.sum(0)
    degrees = _degrees(terms, n - used)
    half = variance.sqrt() * torch.from_numpy(stdtrit(degrees.numpy(), (1 + confidence) / 2))
    heaviest = torch.where(variance > 0, terms.amax(0) / variance.clamp_min(1e-300), 0.0)
    se = variance.sqrt()
    return MeanEstimate(mean, se, mean - half, mean + half, slope, degrees, heaviest)


def _regression(exact: Tensor, surrogate: Tensor, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope [n_units] of exact on cheap effects, each image's pull on it, and its leverage.

    Weighted by (1 - pi) / pi**2, so that the design variance is what is minimised; images that
    are certain to be sampled keep a little weight, because there may be no others.
    """
    weight = (1 - chance).clamp_min(1e-2) / chance.square()
    weight = weight / weight.sum()
    x = surrogate - (weight * surrogate).sum(0)
    y = exact - (weight * exact).sum(0)
    spread = (weight * x.square()).sum(0)
    known = spread > 0
    safe = torch.where(known, spread, 1.0)
    slope = torch.where(known, (weight * x * y).sum(0) / safe, 0.0)
    pull = torch.where(known, weight * x / safe, 0.0)
    return slope, pull, weight + pull * x


def _modelled_variance(residual: Tensor, surrogate: Tensor, chance: Tensor) -> Tensor:
    """Variance [n_units] of the mean if residuals grow in proportion to the cheap effects.

    Images with large effects that the sample missed leave no trace in its residuals, and those
    that were certain to be in it add none to the variance; both tell of the others through the
    ratio of squared residuals to squared cheap effects, which are known for all images.
    """
    n, n_images = len(residual), len(surrogate)
    squares = (surrogate - surrogate.mean(0)).square()
    weight = 1 / chance[:n]
    known = (weight * squares[:n]).sum(0)
    ratio = (weight * residual.square()).sum(0) / torch.where(known > 0, known, torch.inf)
    return ratio * ((1 - chance) / chance * squares).sum(0) / n_images**2


def _degrees(terms: Tensor, most: int) -> Tensor:
    """Satterthwaite's degrees of freedom [n_units] of a sum of squares, in [1, most].

    2 / (squared coefficient of variation of the sum) = 2 n / (kurtosis - 1).
    """
    kurtosis = len(terms) * terms.square().sum(0) / terms.sum(0).square().clamp_min(1e-300)
    degrees = 2 * len(terms) / (kurtosis - 1).clamp_min(1e-12)
    return torch.where(kurtosis > 0, degrees, float(max(most, 1))).clamp(1, max(most, 1))
