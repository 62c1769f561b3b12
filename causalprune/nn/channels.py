"""A layer of which some channels are gone, in a network that keeps its width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.nn.convolution_settings import check_dense_layer, pair_of, with_border
from causalprune.ops.channel_conv2d import channel_conv2d
from causalprune.ops.convolutions import check_activation
from causalprune.ops.plan_cache import forget_plans

__all__ = ["ChannelPrunedConv2d"]


class ChannelPrunedConv2d(nn.Module):
    """A convolution that reads and writes the channels that are left of it, in place.

    What comes in and goes out keeps its full width, so that a residual stream needs no other
    layer's consent; the channels that are not written are ``activation(residual)``, or zero. The
    state dict holds the narrow weight and bias and the two lists. Several threads may run one
    layer. Copies and pickles hold weights, no plans; see :func:`causalprune.ops.channel_conv2d`.

    Parameters
    ----------
    weight : Tensor [len(outputs), len(inputs) / groups, kh, kw]
    bias : Tensor [len(outputs)] or None
    inputs, outputs : sequence of int
        Channels that are read and written, in the order of the weight.
    in_channels, out_channels : int
        Of the tensors that come in and go out.
    stride, dilation : pair of int
    padding : {"same", "valid"} or pair of int
    groups : int
        Each takes the next ``len / groups`` of `inputs` and `outputs`.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
        What follows the layer, computed with it.

    Raises
    ------
    InvalidArgumentError
        For lists with channels that do not exist or come twice, or that do not fit the weight.

    Examples
    --------
    >>> dense = nn.Conv2d(8, 8, 3, padding=1)
    >>> layer = ChannelPrunedConv2d.from_dense(dense, inputs=[0, 3, 4], outputs=[1, 7])
    >>> tuple(layer.weight.shape), sorted(layer.state_dict())
    ((2, 3, 3, 3), ['bias', 'inputs', 'outputs', 'weight'])
    >>> x = torch.randn(2, 8, 5, 5)
    >>> out = layer(x, residual=x)
    >>> torch.equal(out[:, 0], x[:, 0]), torch.equal(out[:, 1], x[:, 1])
    (True, False)
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Sequence[int],
        outputs: Sequence[int],
        in_channels: int,
        out_channels: int,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: str | tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        padding_mode: str = "zeros",
        activation: str = "none",
    ) -> None:
        super().__init__()
        check_activation(activation)
        if groups < 1:
            raise InvalidArgumentError(f"groups: expected at least 1, got {groups}")
        reads = _listed("inputs", inputs, in_channels)
        writes = _listed("outputs", outputs, out_channels)
        if weight.ndim != 4 or weight.shape[:2] != (len(writes), len(reads) // groups):
            raise InvalidArgumentError(
                f"weight: expected shape [{len(writes)}, {len(reads) // groups}, kh, kw], as the "
                f"lists and {groups} groups say, got {list(weight.shape)}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = weight.shape[2], weight.shape[3]
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.padding_mode, self.activation = groups, padding_mode, activation
        self.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
        )
        device = weight.device
        self.register_buffer("inputs", torch.tensor(reads, dtype=torch.int64, device=device))
        self.register_buffer("outputs", torch.tensor(writes, dtype=torch.int64, device=device))

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        inputs: Sequence[int],
        outputs: Sequence[int],
        activation: str = "none",
    ) -> ChannelPrunedConv2d:
        """Make the layer from a convolution, which is left as it is.

        Parameters
        ----------
        conv : torch.nn.Conv2d
        inputs, outputs : sequence of int
            Channels to keep, in any order. Of a convolution with groups every group that keeps
            outputs has to keep equally many inputs and equally many outputs; inputs of the others
            are not read.
        activation : str

        Returns
        -------
        ChannelPrunedConv2d
            With copies of what is kept of weight and bias, of their dtype and on their device.

        Raises
        ------
        InvalidArgumentError
            For another module, channels that do not exist or come twice, groups that keep
            different numbers, or an unknown activation.
        """
        check_dense_layer("conv", conv, nn.Conv2d)
        kept = _kept_by_group(
            conv,
            _listed("inputs", inputs, conv.in_channels),
            _listed("outputs", outputs, conv.out_channels),
        )
        reads = [channel for group_reads, _ in kept for channel in group_reads]
        writes = [channel for _, group_writes in kept for channel in group_writes]
        dense = conv.weight.detach()
        inner = conv.in_channels // conv.groups
        rows = [
            dense[group_writes][:, [channel % inner for channel in group_reads]]
            for group_reads, group_writes in kept
        ]
        weight = torch.cat(rows) if rows else dense[:0, :0].clone()
        bias = None
        if conv.bias is not None:
            bias = conv.bias.detach()[writes].requires_grad_(conv.bias.requires_grad)
        layer = cls(
            weight.requires_grad_(conv.weight.requires_grad),
            bias,
            reads,
            writes,
            conv.in_channels,
            conv.out_channels,
            stride=pair_of(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else pair_of(conv.padding),
            dilation=pair_of(conv.dilation),
            groups=max(1, len(kept)),
            padding_mode=conv.padding_mode,
            activation=activation,
        )
        return layer.train(conv.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(convolution + residual)`` in the channels that are left.

        Parameters
        ----------
        input : Tensor [N, in_channels, H, W]
        residual : Tensor [N, out_channels, Ho, Wo], optional

        Returns
        -------
        Tensor [N, out_channels, Ho, Wo]
        """
        images, padding = with_border(
            input, self.padding, self.kernel_size, self.dilation, self.padding_mode
        )
        return channel_conv2d(
            images,
            self.weight,
            self.bias,
            self.inputs,
            self.outputs,
            self.out_channels,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            residual=residual,
        )

    def refresh(self) -> None:
        """Say that the weight or bias was written to past torch: by ``.data`` or through NumPy."""
        forget_plans(self.weight)

    def extra_repr(self) -> str:
        """Return the settings, and what is left of the weight."""
        settings = ["stride", "padding", "dilation", "groups", "padding_mode", "activation"]
        return ", ".join(
            [
                f"{len(self.inputs)} of {self.in_channels} inputs",
                f"{len(self.outputs)} of {self.out_channels} outputs",
                f"kernel_size={self.kernel_size}",
                *(f"{name}={getattr(self, name)}" for name in settings),
            ]
        )


def _listed(name: str, channels: Sequence[int] | Tensor, n_channels: int) -> list[int]:
    listed = [int(channel) for channel in channels]
    wrong = [channel for channel in listed if not 0 <= channel < n_channels]
    if wrong:
        raise InvalidArgumentError(
            f"{name}: expected channels in [0, {n_channels}), got {wrong[0]}"
        )
    if len(set(listed)) < len(listed):
        twice = next(channel for k, channel in enumerate(listed) if channel in listed[:k])
        raise InvalidArgumentError(f"{name}: expected every channel once, got {twice} twice")
    return listed


def _kept_by_group(
    conv: nn.Conv2d, reads: list[int], writes: list[int]
) -> list[tuple[list[int], list[int]]]:
    """Divide the lists among the groups that keep an output."""
    inner, outer = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    kept = []
    for group in range(conv.groups):
        group_writes = [channel for channel in writes if channel // outer == group]
        if group_writes:
            kept.append(([channel for channel in reads if channel // inner == group], group_writes))
    for name, counts in (
        ("inputs", {len(group_reads) for group_reads, _ in kept}),
        ("outputs", {len(group_writes) for _, group_writes in kept}),
    ):
        if len(counts) > 1:
            raise InvalidArgumentError(
                f"{name}: expected as many of every group that keeps an output, got "
                f"{min(counts)} to {max(counts)} of {conv.groups} groups"
            )
    return kept
