"""Greedy reconstruction of what the next layer computes (Luo, Wu and Lin 2017, "ThiNet")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.scoring.consumption import Reading, by_unit, layer_of, readings_of, recorder_of
from causalprune.scoring.methods import Job, UnitScores, register_method

__all__ = ["removal_order", "thinet"]


@register_method("thinet", needs_labels=False, outcomes=())
def thinet(job: Job, *, samples_per_image: int = 10) -> Mapping[str, UnitScores]:
    """Place of a unit in the greedy order that keeps the consumers' outputs (section 3.2).

    At random places of the consumers' outputs (an output channel, a position) the contribution of
    every unit is written down; units are then removed one by one, each time the one that leaves
    the sum of what is missing, squared and summed over the samples, smallest. The importance is
    the unit's place in that order as a fraction of its group, so that a global plan removes the
    same fraction everywhere, as the paper does. Where a unit is cut on its own branch, its own
    value there is what is missing.

    Parameters
    ----------
    job : Job
    samples_per_image : int
        Places per image and consumer.
    """
    if not isinstance(samples_per_image, int) or samples_per_image < 1:
        raise InvalidArgumentError(
            f"samples_per_image: expected a positive integer, got {samples_per_image!r}"
        )
    readings = readings_of(job.model, job.graph)
    grams = {
        g.name: torch.zeros(g.n_units, g.n_units, dtype=torch.float64) for g in job.graph.groups
    }
    draw = torch.Generator().manual_seed(job.seed)

    def see(reading: Reading, value: Tensor) -> Tensor:
        samples = _contributions(reading, value.detach(), samples_per_image, draw)
        for name, found in by_unit(reading, samples).items():
            together = found.T @ found
            # On its own branch a unit fills a channel of its own: nothing makes up for it.
            own = reading.weight is None
            grams[name] += torch.diag(together.diagonal()) if own else together
        return value

    recorder = recorder_of(job.trace(), readings, see)
    n_images = 0
    with torch.no_grad(), job.bar("thinet", job.batches.n_batches) as advance:
        for batch in job.batches:
            recorder.run(batch.inputs)
            n_images += len(batch.inputs)
            advance()
    cost = n_images / job.n_units
    return {name: UnitScores(_places(gram), n=n_images, cost=cost) for name, gram in grams.items()}


def removal_order(gram: Tensor) -> list[int]:
    """Units in the order in which they go: each adds least to the squared error so far.

    Parameters
    ----------
    gram : Tensor [n_units, n_units], float64
        Sums over samples of the products of two units' contributions.

    Examples
    --------
    >>> contributions = torch.tensor([[3.0, -2.0, 1.5], [1.0, -2.0, 1.5]])
    >>> removal_order(contributions.T @ contributions)
    [2, 1, 0]
    """
    left, order = list(range(len(gram))), []
    added = gram.diagonal().clone()  # to the error, by removing the unit next
    while left:
        best = min(left, key=lambda unit: (float(added[unit]), unit))
        order.append(best)
        left.remove(best)
        added += 2 * gram[best]
    return order


def _places(gram: Tensor) -> Tensor:
    order = torch.tensor(removal_order(gram))
    places = torch.empty(len(order), dtype=torch.float64)
    places[order] = torch.arange(1, len(order) + 1, dtype=torch.float64) / len(order)
    return places


def _contributions(reading: Reading, value: Tensor, samples: int, draw: torch.Generator) -> Tensor:
    """Sample what every column of `value` gives to the layer's output: [S, columns]."""
    if reading.weight is None:
        columns = value.movedim(reading.consumer.axis, -1).flatten(0, -2)
        chosen = torch.randint(len(columns), (samples * len(value),), generator=draw)
        return columns[chosen.to(value.device)].double()
    layer = layer_of(reading.module)
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        tokens = value.flatten(0, -2)
        chosen = torch.randint(len(tokens), (samples * len(value),), generator=draw)
        outputs = torch.randint(len(weight), (len(chosen),), generator=draw)
        return (tokens[chosen] * weight[outputs]).double()
    return _of_convolution(layer, value, samples, draw)


def _of_convolution(conv: nn.Conv2d, value: Tensor, samples: int, draw: torch.Generator) -> Tensor:
    """Contributions [N * samples, I] of input channels to random outputs of a convolution."""
    n_samples = samples * len(value)
    image = torch.arange(len(value)).repeat_interleave(samples)
    output = torch.randint(conv.out_channels, (n_samples,), generator=draw)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nn.functional.pad(value, conv._reversed_padding_repeated_twice, mode=mode)
    corners = []
    for size, kernel, stride, dilation in zip(
        x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True
    ):
        n_positions = (size - dilation * (kernel - 1) - 1) // stride + 1
        first = torch.randint(n_positions, (n_samples,), generator=draw) * stride
        corners.append(first[:, None] + torch.arange(kernel) * dilation)
    rows, columns = corners
    patches = x[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    weight = conv.weight.detach()[output].permute(0, 2, 3, 1)
    result = torch.zeros(n_samples, conv.in_channels, dtype=torch.float64)
    inputs = conv.in_channels // conv.groups
    own = torch.arange(inputs) + (output * conv.groups // conv.out_channels * inputs)[:, None]
    seen = patches.gather(3, own[:, None, None, :].expand(-1, *patches.shape[1:3], -1))
    result.scatter_(1, own, (seen * weight).double().sum((1, 2)))
    return result
