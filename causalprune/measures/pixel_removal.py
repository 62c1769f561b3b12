"""What a network says when one more pixel is taken away: many pixels and images at a time."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import UnsupportedModelError
from causalprune.graph.steps import is_hooked
from causalprune.measures.network_outputs import logits_from
from causalprune.measures.pixel_windows import Layer, Network, Phase, network_of, phases_of

__all__ = ["PixelRemoval", "log_odds", "pixel_removal"]


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` [R] of the softmax probability p of a class.

    It ranks as the probability does, and does not saturate where p rounds to 1.

    Parameters
    ----------
    logits : Tensor [R, K]
    labels : Tensor [R], int64

    Examples
    --------
    >>> found = log_odds(torch.tensor([[100.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> found.tolist()
    [100.0, 0.0]
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return own[:, 0] - others


class PixelRemoval:
    """Run whole images, each with one more pixel at zero.

    Parameters
    ----------
    model : nn.Module
        In eval mode.
    images : Tensor [N, C, H, W]
        As they are now; on the network's device.
    labels : Tensor [N], int64
        Whose log-odds are asked for.
    batch_size : int
        Rows (image, pixel) at a time.

    Attributes
    ----------
    threads : int or None
        How many threads of torch's to run it with; ``None``: as many as there are. The ways that
        do little in each of many operators run on one: on a busy machine threads that wait for
        each other at every operator made them ten times slower.
    """

    threads: int | None = None

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self._model, self._labels, self._batch_size = model, labels, batch_size
        self.images = images.clone()

    def remove(self, pixels: Tensor) -> None:
        """Set pixels [N, m], flat places, to zero for good."""
        index = pixels[:, None].expand(-1, self.images.shape[1], -1)
        self.images.flatten(2).scatter_(2, index, 0.0)

    def log_odds(self, pixels: Tensor) -> Tensor:
        """Return the labels' log-odds [N, r] with one of the pixels [N, r] at zero."""
        now = log_odds(self._now(), self._labels)
        found = now[:, None].expand(pixels.shape).clone()
        colours = self.images.flatten(2).gather(
            2, pixels[:, None].expand(-1, self.images.shape[1], -1)
        )
        # A pixel that is zero already changes nothing, exactly.
        image, place = (colours != 0).any(1).nonzero(as_tuple=True)
        found[image, place] = self._of_rows(image, pixels[image, place])
        if not bool(torch.isfinite(found).all()):
            raise UnsupportedModelError("model: expected finite logits, got NaN or infinity")
        return found

    def _now(self) -> Tensor:
        """Look at the images as they are; return logits [N, K]."""
        return logits_from(self._model, self.images)

    def _of_rows(self, image: Tensor, pixel: Tensor) -> Tensor:
        parts = [
            log_odds(self._logits(*rows), self._labels[rows[0]])
            for rows in zip(
                torch.split(image, self._batch_size),
                torch.split(pixel, self._batch_size),
                strict=True,
            )
        ]
        return torch.cat(parts) if parts else self.images.new_zeros(0)

    def _logits(self, image: Tensor, pixel: Tensor) -> Tensor:
        rows = self.images[image]
        rows.flatten(2)[torch.arange(len(rows), device=rows.device), :, pixel] = 0.0
        return logits_from(self._model, rows)


class LinearRemoval(PixelRemoval):
    """For a network that begins with a linear layer on the flattened image: its sums by update."""

    threads = 1

    def __init__(
        self,
        model: nn.Sequential,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
    ) -> None:
        super().__init__(model, images, labels, batch_size)
        linear = model[1]
        assert isinstance(linear, nn.Linear)
        self._linear, self._rest = linear, model[2:]
        # [H * W, C, O]: what one pixel's colours are multiplied by.
        self._columns = linear.weight.T.reshape(images.shape[1], -1, linear.out_features).movedim(
            1, 0
        )
        self._columns = self._columns.contiguous()
        self._sums = images.new_zeros(0)

    def _now(self) -> Tensor:
        self._sums = self._linear(self.images.flatten(1))
        return logits_from(self._rest, self._sums)

    def _logits(self, image: Tensor, pixel: Tensor) -> Tensor:
        colour = self.images.flatten(2)[image, :, pixel]
        change = torch.einsum("rc,rco->ro", colour, self._columns[pixel])
        return logits_from(self._rest, self._sums[image] - change)


class WindowRemoval(PixelRemoval):
    """For a network that begins with convolutions: only what the pixel reaches is computed."""

    threads = 1

    def __init__(
        self,
        model: nn.Module,
        network: Network,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
    ) -> None:
        super().__init__(model, images, labels, batch_size)
        self._network = network
        self._phases = phases_of(network.layers, images[:1])
        # Of every pixel: its phase, its block, and its place in the block.
        where = torch.empty(3, images[0, 0].numel(), dtype=torch.int64, device=images.device)
        for k, phase in enumerate(self._phases):
            block, place = (phase.pixels >= 0).nonzero(as_tuple=True)
            where[:, phase.pixels[block, place]] = torch.stack(
                [block.new_full(block.shape, k), block, place]
            )
        self._phase_of, self._block_of, self._place_of = where
        self._maps: list[Tensor] = []

    def _now(self) -> Tensor:
        value = self.images
        self._maps = [_flat(value)]
        for layer in self._network.layers:
            value = layer.step(lambda _, value=value: value)  # type: ignore[misc]
            self._maps.append(_flat(value))
        self._shape = value.shape[1:]
        # One position more than there are, for what lies outside.
        self._maps[-1] = F.pad(self._maps[-1], (0, 0, 0, 1))
        return self._network.finish(value)

    def _of_rows(self, image: Tensor, pixel: Tensor) -> Tensor:
        found = self.images.new_empty(len(image))
        phases = self._phase_of[pixel]
        order = phases.argsort(stable=True)
        counts = torch.bincount(phases, minlength=len(self._phases)).tolist()
        for phase, chosen in zip(self._phases, torch.split(order, counts), strict=True):
            for rows in torch.split(chosen, self._batch_size) if len(chosen) else ():
                logits = self._of_phase(phase, image[rows], pixel[rows])
                found[rows] = log_odds(logits, self._labels[image[rows]])
        return found

    def _of_phase(self, phase: Phase, image: Tensor, pixel: Tensor) -> Tensor:
        """Return the logits [R, K] of rows whose pixels are all of one phase."""
        block, layers = self._block_of[pixel], self._network.layers
        colour = self._maps[0][image, pixel]
        change = colour.new_zeros(len(image), math.prod(phase.sizes[0]), colour.shape[1])
        change[torch.arange(len(image), device=image.device), self._place_of[pixel]] = -colour
        value = change
        for k, layer in enumerate(layers):
            if layer.kind != "convolution":
                value = _behind(layer, value, phase.sizes[k], phase.sizes[k + 1])
                continue
            if k:
                change = value - self._window(phase, k, image, block)
                change *= phase.valid[k][block, :, None].to(change)
            matrix = phase.matrices[k]
            assert matrix is not None
            value = self._window(phase, k + 1, image, block)
            value.flatten(1).addmm_(change.flatten(1), matrix)
        return self._network.finish(self._whole(phase, value, image, block))

    def _window(self, phase: Phase, level: int, image: Tensor, block: Tensor) -> Tensor:
        """Return what is in the windows now [R, positions, C]."""
        maps = self._maps[level]
        index = phase.places[level][block] + (maps.shape[1] * image)[:, None]
        found = maps.flatten(0, 1).index_select(0, index.flatten())
        return found.view(*index.shape, -1)

    def _whole(self, phase: Phase, value: Tensor, image: Tensor, block: Tensor) -> Tensor:
        """Return the last maps [R, C, H, W] with the windows `value` in their places."""
        whole = self._maps[-1].index_select(0, image)
        rows = whole.shape[1] * torch.arange(len(image), device=image.device)
        index = phase.places[-1][block] + rows[:, None]
        whole.flatten(0, 1).index_copy_(0, index.flatten(), value.flatten(0, 1))
        height, width = self._shape[1:]
        maps: Tensor = whole[:, :-1].view(len(image), height, width, -1)
        return maps.permute(0, 3, 1, 2)


def pixel_removal(
    model: nn.Module, images: Tensor, labels: Tensor, batch_size: int
) -> PixelRemoval:
    """Return the fastest of the ways above that gives this network's values.

    Parameters
    ----------
    model, images, labels, batch_size
        See :class:`PixelRemoval`.
    """
    # A trace calls layers, not what holds them, and would pass by the hooks of those.
    if not any(is_hooked(module) for module in model.modules() if len(list(module.children()))):
        if _begins_with_linear(model):
            return LinearRemoval(model, images, labels, batch_size)
        network = _followed(model, images[:1])
        if network is not None:
            return WindowRemoval(model, network, images, labels, batch_size)
    return PixelRemoval(model, images, labels, batch_size)


def _followed(model: nn.Module, example: Tensor) -> Network | None:
    try:
        return network_of(model, example)
    except UnsupportedModelError:  # no graph of its operators can be had
        return None


def _begins_with_linear(model: nn.Module) -> TypeGuard[nn.Sequential]:
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        return False
    if len(model) < 2 or type(model[0]) is not nn.Flatten or type(model[1]) is not nn.Linear:
        return False
    all_axes = (model[0].start_dim, model[0].end_dim) == (1, -1)
    return all_axes and not is_hooked(model[0]) and not is_hooked(model[1])


def _flat(value: Tensor) -> Tensor:
    """Return maps [N, C, H, W] as [N, H * W, C], so that a position's channels lie together."""
    return value.flatten(2).transpose(1, 2).contiguous()


def _behind(
    layer: Layer, value: Tensor, size: tuple[int, int], size_behind: tuple[int, int]
) -> Tensor:
    """Return windows [R, positions, C] behind a pointwise layer or a pooling."""
    if layer.step.function == "relu" or type(layer.step.module) is nn.ReLU:
        return value.relu_()  # nobody else reads it, and a new tensor costs more than the maximum
    if layer.kind == "pointwise":
        found: Tensor = layer.step(lambda _: value)
        return found
    maps = value.view(len(value), *size, -1)
    for axis in (0, 1):
        n, stride = size_behind[axis], layer.stride[axis]
        slices = [
            maps.narrow(1 + axis, k, stride * (n - 1) + 1)[
                (slice(None),) * (1 + axis) + (slice(None, None, stride),)
            ]
            for k in range(layer.kernel[axis])
        ]
        maps = slices[0]
        for other in slices[1:]:
            maps = torch.maximum(maps, other) if layer.kind == "max" else maps + other
    if layer.kind == "average":
        maps = maps / (layer.kernel[0] * layer.kernel[1])
    behind: Tensor = maps.flatten(1, 2)
    return behind
