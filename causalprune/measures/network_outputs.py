"""Outputs of networks as they are measured here: in eval mode, without gradients, checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.graph import evaluating

__all__ = ["device_of", "logits_from", "measuring"]


@contextmanager
def measuring(**networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode and keep no gradients, in a ``with`` block.

    Raises
    ------
    InvalidArgumentError
        If one is no ``nn.Module``; the message has the name that it was given by.
    """
    for name, network in networks.items():
        if not isinstance(network, nn.Module):
            raise InvalidArgumentError(
                f"{name}: expected an nn.Module, got {type(network).__name__}"
            )
    with ExitStack() as stack, torch.no_grad():
        for network in networks.values():
            stack.enter_context(evaluating(network))
        yield


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's first parameter or buffer is; the CPU where it has none."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


def logits_from(network: nn.Module, inputs: Tensor, name: str = "model") -> Tensor:
    """Run a network on its own device.

    Parameters
    ----------
    network : nn.Module
    inputs : Tensor [N, ...]
        On any device.
    name : str
        Of the network, for errors.

    Returns
    -------
    Tensor [N, K], K >= 2
        Logits, on the network's device.

    Raises
    ------
    UnsupportedModelError
        If the output is not that, or not finite.
    """
    output = network(inputs.to(device_of(network)))
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedModelError(
            f"{name}: expected logits [N, K] of at least two classes, got {got}"
        )
    if not bool(torch.isfinite(output).all()):
        raise UnsupportedModelError(f"{name}: expected finite logits, got NaN or infinity")
    return output
