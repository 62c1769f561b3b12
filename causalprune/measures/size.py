"""How large a network is: parameters, bytes and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from causalprune.errors import InvalidArgumentError
from causalprune.graph import evaluating
from causalprune.graph.recording import frozen

__all__ = [
    "count_layer_weights",
    "count_macs",
    "count_nonzero_macs",
    "count_parameters",
    "counted_attention",
    "parameter_bytes",
]


def count_parameters(model: nn.Module) -> int:
    """Count the scalars in a network's parameters, shared ones once.

    Parameters
    ----------
    model : nn.Module
        The network, on any device.

    Returns
    -------
    int
        Number of scalars; buffers (running statistics) are not parameters.

    Examples
    --------
    >>> from torch import nn
    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_layer_weights(model: nn.Module, *, nonzero: bool = False) -> dict[str, int]:
    """Count the weights of every convolution, linear layer and attention.

    Parameters
    ----------
    model : nn.Module
        The network, on any device.
    nonzero : bool
        Leave out weights that are zero.

    Returns
    -------
    dict of str to int
        By the layer's name: the scalars of its parameters of two dimensions or more (biases and
        normalisations have one). The projections of an ``nn.MultiheadAttention`` count together.

    Examples
    --------
    >>> from torch import nn
    >>> count_layer_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4)))
    {'0': 18, '2': 32}
    """
    counts: dict[str, int] = {}
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in counts if other)
        if isinstance(module, kinds) and not inside:
            weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
            counts[name] = sum(int(w.count_nonzero()) if nonzero else w.numel() for w in weights)
    return counts


def parameter_bytes(model: nn.Module) -> int:
    """Count the bytes that a network's parameters and buffers occupy.

    Parameters
    ----------
    model : nn.Module
        The network, on any device.

    Returns
    -------
    int
        Bytes of all parameters and buffers, shared ones once. A masked weight occupies as much
        as before; a physically pruned one does not.

    Examples
    --------
    >>> from torch import nn
    >>> parameter_bytes(nn.Linear(3, 2))
    32
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass.

    Parameters
    ----------
    model : nn.Module
        The network; it runs once, in evaluation mode, and gets its mode back.
    example : Tensor
        Input ``[N, ...]`` on the network's device. The count is for the whole batch: pass one
        image to get a figure per image.

    Returns
    -------
    int
        Multiply-accumulates of convolutions, linear layers and matrix products, measured with
        ``torch.utils.flop_counter`` (which counts two operations for each). Activations,
        normalisation and pooling are not counted.

    Raises
    ------
    InvalidArgumentError
        ``example`` is not a tensor.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> count_macs(nn.Linear(3, 2), torch.zeros(1, 3))
    6
    """
    require_tensor(example)
    counter = FlopCounterMode(display=False)
    with evaluating(model), frozen(model), torch.no_grad(), counted_attention(), counter:
        model(example)
    return int(counter.get_total_flops()) // 2


def count_nonzero_macs(model: nn.Module, example: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass that meet no zero weight.

    Parameters
    ----------
    model : nn.Module
        The network; it runs twice, in evaluation mode, and gets its mode back.
    example : Tensor
        See :func:`count_macs`.

    Returns
    -------
    int
        As :func:`count_macs`, less one for every output position and zero weight of convolutions
        and linear layers: what a kernel that skips zeros computes.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> layer = nn.Conv2d(1, 2, 3, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight[0].zero_()
    >>> image = torch.zeros(1, 1, 5, 5)
    >>> count_macs(layer, image), count_nonzero_macs(layer, image)
    (162, 81)
    """
    skipped = 0

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal skipped
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        outputs = len(module.weight)
        skipped += output.numel() // outputs * int((module.weight == 0).sum())

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with evaluating(model), frozen(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return count_macs(model, example) - skipped


@contextmanager
def counted_attention() -> Iterator[None]:
    """Compute attention by operators whose FLOPs torch's counter sees, in a ``with`` block.

    It sees neither the fused layer nor the fused attention of the CPU.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def require_tensor(example: object) -> None:
    """Raise InvalidArgumentError unless ``example`` is a tensor."""
    if not isinstance(example, Tensor):
        raise InvalidArgumentError(
            f"example: expected a torch.Tensor, got {type(example).__name__}"
        )
