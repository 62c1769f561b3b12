"""What sipp and pfp share: the relative sensitivity of every weight of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import DataError, InvalidArgumentError
from causalprune.graph import UnitGroup
from causalprune.ops import relative_sensitivity
from causalprune.ops.registration import kernel_device
from causalprune.scoring.keep_budgets import units_and_places, weight_id, weight_layers
from causalprune.scoring.methods import Job

__all__ = [
    "CONSTANT",
    "DELTA",
    "FORWARDS_PER_IMAGE",
    "relative_sensitivities",
    "sample_note",
    "sample_size",
    "unit_values",
    "unwatched",
]

FORWARDS_PER_IMAGE = 5.0
"""A forward pass, and for both signs a product for the denominators and one for the shares."""

CONSTANT = 3.0
"""C of the published bounds."""

DELTA = 1e-16
"""Failure probability delta of the published bounds."""


def sample_size(model: nn.Module, *, constant: float = CONSTANT, delta: float = DELTA) -> int:
    """Count the images on which sensitivities are taken: ``ceil(C ln(8 eta eta_max / delta))``.

    ``eta`` is the number of outputs (filters and neurons) of all convolutions and linear layers,
    ``eta_max`` that of the largest of them. Source: Baykal et al. 2019, "Data-dependent coresets
    for compressing neural networks", as used by Liebenwein et al. 2021; for images of the
    validation split.

    Raises
    ------
    InvalidArgumentError
        If the network has no such layer, or a constant is out of range.

    Examples
    --------
    >>> sample_size(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    125
    """
    outputs = [len(_weight(module)) for module in weight_layers(model).values()]
    if not outputs:
        raise InvalidArgumentError("model: expected a convolution or a linear layer, found none")
    check_bound(constant, delta)
    return math.ceil(constant * math.log(8 * sum(outputs) * max(outputs) / delta))


def check_bound(constant: float, delta: float) -> None:
    """Refuse constants with which the published bounds say nothing."""
    if not 0 < constant < math.inf:
        raise InvalidArgumentError(f"constant: expected a positive number, got {constant!r}")
    if not 0 < delta < 1:
        raise InvalidArgumentError(f"delta: expected a probability in (0, 1), got {delta!r}")


def sample_note(model: nn.Module, n_images: int) -> tuple[str, ...]:
    """Say where the images were fewer than :func:`sample_size` asks for."""
    wanted = sample_size(model)
    if n_images >= wanted:
        return ()
    return (f"{n_images} images; the published guarantee is for {wanted} and more",)


def relative_sensitivities(job: Job, aggregate: str) -> tuple[dict[str, Tensor], int]:
    """Relative sensitivity of every weight over the job's images.

    Layers are read by hooks as they run, one at a time: nothing of a run is kept, the network need
    not be traceable, and a layer that runs twice is read twice.

    Parameters
    ----------
    job : Job
    aggregate : {"mean", "max"}
        Over the positions of an image; over images the maximum is taken.

    Returns
    -------
    sensitivities : dict of str to Tensor
        Layer name to values in the shape of its weight, float32 on the CPU, in [0, 1]. Layers that
        did not run as modules of their own are missing.
    n_images : int

    Raises
    ------
    DataError
        If the input of a layer is not finite, or too large for sums in float32.
    InvalidArgumentError
        If a weight is not finite.
    """
    layers = weight_layers(job.model)
    names = {weight_id(module): name for name, module in layers.items()}
    found: dict[str, Tensor] = {}
    n_images = 0

    def read(module: nn.Module, inputs: Tensor) -> None:
        name = names[weight_id(module)]
        values = _of_layer(name, module, inputs, n_batch, aggregate)
        found[name] = torch.maximum(found[name], values) if name in found else values

    with (
        torch.no_grad(),
        _reading(job.model, read),
        job.bar("sensitivities", job.batches.n_batches) as advance,
    ):
        for batch in job.batches:
            n_batch = len(batch.inputs)
            job.model(batch.inputs)
            n_images += n_batch
            advance()
    return found, n_images


@contextmanager
def _reading(model: nn.Module, read: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Show `read` what every convolution and linear layer is given."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read(module, args[0] if args else kwargs["input"])

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(
    name: str, module: nn.Module, inputs: Tensor, n_images: int, aggregate: str
) -> Tensor:
    device = kernel_device(inputs)
    x = inputs.detach().to(device, torch.float32)
    weight = _weight(module).to(device, torch.float32)
    if not bool(weight.isfinite().all()):
        raise InvalidArgumentError(f"model: weight of layer {name!r} is not finite")
    options: dict[str, Any] = {}
    if isinstance(module, nn.Conv2d):
        x, options = _padded(x if x.ndim == 4 else x[None], module)
    elif x.ndim > 2:
        # Windows and the like are rows of the batch there; here they are tokens of their image.
        whole = x.ndim == 3 and len(x) != n_images and len(x) % n_images == 0
        x = x.reshape(n_images if whole else len(x), -1, x.shape[-1])
    try:
        found = relative_sensitivity(x, weight, aggregate=aggregate, **options).cpu()
    except InvalidArgumentError as error:
        raise DataError(f"input of layer {name!r}: {error}") from error
    # On a GPU the operator reads nothing back.
    if device.type == "cuda" and not bool(found.isfinite().all()):
        raise DataError(
            f"input of layer {name!r}: expected finite values, and sums of |weight| * x within "
            "float32, got sensitivities that are not finite"
        )
    return found


def _padded(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, dict[str, Any]]:
    """Apply by hand the paddings that are not symmetric zeros."""
    options = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x, {**options, "padding": conv.padding}
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), options


def unit_values(
    group: UnitGroup,
    model: nn.Module,
    values: Mapping[str, Tensor],
    reduce: str,
    method: str,
) -> tuple[Tensor, Sequence[str]]:
    """Reduce the values of the weights that read a unit, over all its consumers.

    Parameters
    ----------
    group : UnitGroup
    model : nn.Module
    values : Mapping of str to Tensor
        Layer name to values in the shape of its weight.
    reduce : {"amax", "sum"}
    method : str
        Named in the error.

    Returns
    -------
    Tensor [n_units], float64
    sequence of str
        Consumers of which there are no values.

    Raises
    ------
    InvalidArgumentError
        If the units are cut on their own branch, where nobody reads them.
    """
    total = torch.zeros(group.n_units, dtype=torch.float64)
    missing = []
    for consumer in group.consumers:
        if consumer.at_output:
            raise InvalidArgumentError(
                f"units: method {method!r} scores units by the weights that read them, expected "
                f"units='groups' on a network that can be traced; those of {group.name!r} are cut "
                "on their own branch"
            )
        if consumer.layer not in values:
            missing.append(consumer.layer)
            continue
        module = model.get_submodule(consumer.layer)
        by_channel = _by_input_channel(values[consumer.layer], getattr(module, "groups", 1))
        channel = by_channel.double().amax(1) if reduce == "amax" else by_channel.double().sum(1)
        total.scatter_reduce_(0, *units_and_places(consumer.spans, channel), reduce)
    return total, missing


def unwatched(group: str, readers: Sequence[str], taken_as: str) -> str:
    """Say of which units there is no sensitivity, and what stands for it."""
    layers = ", ".join(readers)
    return (
        f"{group}: sensitivity unknown and taken as {taken_as}, because {layers} is no plain layer"
    )


def _by_input_channel(values: Tensor, groups: int) -> Tensor:
    """Turn values [O, I / groups, ...] of a weight into [I, those of the weights that read it]."""
    n_outputs, n_inputs = values.shape[:2]
    parts = values.reshape(groups, n_outputs // groups, n_inputs, -1)
    return parts.transpose(1, 2).reshape(groups * n_inputs, -1)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
