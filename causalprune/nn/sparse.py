"""Layers whose zero weights cost nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError
from causalprune.nn.convolution_settings import check_dense_layer, pair_of, with_border
from causalprune.ops.convolutions import check_activation
from causalprune.ops.plan_cache import forget_plans
from causalprune.ops.sparse_conv2d import sparse_conv2d

__all__ = ["SparseConv2d", "SparseLinear"]


class SparseConv2d(nn.Conv2d):
    """A convolution that skips the zeros of its weight.

    The weight is an ordinary dense parameter with zeros in it, so the state dict is that of a
    ``torch.nn.Conv2d`` and either loads the other's. Whatever is zero stays zero in training (its
    gradient is zero): make the optimiser after the layer, without the momentum of a time when the
    weights were not zero. Several threads may run one layer. Copies and pickles hold weights, no
    plans; see :func:`causalprune.ops.sparse_conv2d` for what a first call costs.

    Parameters
    ----------
    *settings, **named_settings
        As of ``torch.nn.Conv2d``.
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}
        What follows the layer, computed with it.

    Raises
    ------
    InvalidArgumentError
        If there is no activation of this name.

    Examples
    --------
    >>> import torch
    >>> dense = nn.Conv2d(16, 32, 3, padding=1)
    >>> sparse = SparseConv2d.from_dense(dense, threshold=0.05, activation="relu")
    >>> x = torch.randn(2, 16, 8, 8)
    >>> with torch.no_grad():
    ...     dense.weight[dense.weight.abs() <= 0.05] = 0
    ...     torch.allclose(sparse(x), dense(x).relu(), atol=1e-5)
    True
    >>> _ = dense.load_state_dict(sparse.state_dict())
    """

    activation: str

    def __init__(self, *settings: Any, activation: str = "none", **named_settings: Any) -> None:
        check_activation(activation)
        super().__init__(*settings, **named_settings)
        self.activation = activation

    @classmethod
    def from_dense(
        cls, conv: nn.Conv2d, threshold: float = 0.0, activation: str = "none"
    ) -> SparseConv2d:
        """Make the layer from a convolution, which is left as it is.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            Masked or parametrized ones are read as they run.
        threshold : float
            Weights of this absolute value or less become zero.
        activation : str

        Returns
        -------
        SparseConv2d
            With copies of weight and bias, of their dtype and on their device.

        Raises
        ------
        InvalidArgumentError
            For another module, a negative threshold or an unknown activation.
        """
        check_dense_layer("conv", conv, nn.Conv2d)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            pair_of(conv.kernel_size),
            stride=pair_of(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else pair_of(conv.padding),
            dilation=pair_of(conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
            activation=activation,
        )
        _take_weights(layer, conv, threshold)
        return layer

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(convolution + residual)``.

        Parameters
        ----------
        input : Tensor [N, I, H, W] or [I, H, W]
        residual : Tensor, optional
            Shaped as the result.

        Returns
        -------
        Tensor [N, O, Ho, Wo] or [O, Ho, Wo]
        """
        return _convolve(self, input, self.weight, self.bias, residual)

    def refresh(self) -> None:
        """Say that the weight or bias was written to past torch: by ``.data`` or through NumPy."""
        forget_plans(self.weight)

    def extra_repr(self) -> str:
        """Return the settings, and what is left of the weight."""
        settings = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{settings}, {_description(self.weight, self.activation)}"


class SparseLinear(nn.Linear):
    """A linear layer that skips the zeros of its weight.

    All that is said of :class:`SparseConv2d` holds: it runs as a 1x1 convolution whose positions
    are the rows of its input. Sixteen rows share the loading of a weight: of fewer, lanes are idle.

    Parameters
    ----------
    *settings, **named_settings
        As of ``torch.nn.Linear``.
    activation : {"none", "relu", "relu6", "hardswish", "silu", "gelu"}

    Raises
    ------
    InvalidArgumentError
        If there is no activation of this name.

    Examples
    --------
    >>> import torch
    >>> dense = nn.Linear(64, 10)
    >>> sparse = SparseLinear.from_dense(dense)
    >>> x = torch.randn(3, 20, 64)
    >>> torch.allclose(sparse(x), dense(x), atol=1e-5)
    True
    """

    activation: str

    def __init__(self, *settings: Any, activation: str = "none", **named_settings: Any) -> None:
        check_activation(activation)
        super().__init__(*settings, **named_settings)
        self.activation = activation

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, threshold: float = 0.0, activation: str = "none"
    ) -> SparseLinear:
        """Make the layer from a linear one, which is left as it is.

        Parameters
        ----------
        linear : torch.nn.Linear
        threshold : float
            Weights of this absolute value or less become zero.
        activation : str

        Returns
        -------
        SparseLinear

        Raises
        ------
        InvalidArgumentError
            For another module, a negative threshold or an unknown activation.
        """
        check_dense_layer("linear", linear, nn.Linear)
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",
            activation=activation,
        )
        _take_weights(layer, linear, threshold)
        return layer

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(input @ weight.T + bias + residual)``.

        Parameters
        ----------
        input : Tensor [..., in_features]
        residual : Tensor [..., out_features], optional

        Returns
        -------
        Tensor [..., out_features]
        """
        if 0 in input.shape[:-1]:
            return nn.functional.linear(input, self.weight, self.bias)
        image = _as_image(input)
        weight = self.weight[:, :, None, None]
        added = None if residual is None else _as_image(residual)
        result = sparse_conv2d(image, weight, self.bias, activation=self.activation, residual=added)
        return result[0, :, 0].t().reshape(*input.shape[:-1], self.out_features)

    def refresh(self) -> None:
        """Say that the weight or bias was written to past torch: by ``.data`` or through NumPy."""
        forget_plans(self.weight)

    def extra_repr(self) -> str:
        """Return the settings, and what is left of the weight."""
        return f"{super().extra_repr()}, {_description(self.weight, self.activation)}"


def _take_weights(
    layer: nn.Conv2d | nn.Linear, dense: nn.Conv2d | nn.Linear, threshold: float
) -> None:
    if not threshold >= 0:
        raise InvalidArgumentError(f"threshold: expected at least 0, got {threshold!r}")
    weight = dense.weight.detach()
    weight = weight.masked_fill(weight.abs() <= threshold, 0)
    layer.weight = nn.Parameter(weight, requires_grad=dense.weight.requires_grad)
    if dense.bias is not None:
        layer.bias = nn.Parameter(
            dense.bias.detach().clone(), requires_grad=dense.bias.requires_grad
        )
    layer.train(dense.training)


def _convolve(
    layer: SparseConv2d, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    images = x if x.ndim != 3 else x.unsqueeze(0)
    added = residual if residual is None or residual.ndim != 3 else residual.unsqueeze(0)
    images, padding = with_border(
        images, layer.padding, layer.kernel_size, layer.dilation, layer.padding_mode
    )
    result = sparse_conv2d(
        images,
        weight,
        bias,
        stride=pair_of(layer.stride),
        padding=padding,
        dilation=pair_of(layer.dilation),
        groups=layer.groups,
        activation=layer.activation,
        residual=added,
    )
    return result if x.ndim != 3 else result.squeeze(0)


def _as_image(rows: Tensor) -> Tensor:
    """View [..., features] as one image [1, features, 1, rows]."""
    return rows.reshape(-1, rows.shape[-1]).t()[None, :, None]


def _description(weight: Tensor, activation: str) -> str:
    known = "" if weight.is_meta else f"{1 - _density(weight):.1%} zeros"
    return ", ".join(part for part in (known, f"activation={activation}") if part)


def _density(weight: Tensor) -> float:
    return float(weight.detach().count_nonzero()) / max(1, weight.numel())
