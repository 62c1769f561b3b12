"""The network that acceleration returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from causalprune.errors import InvalidArgumentError, UnsupportedModelError
from causalprune.nn.acceleration_report import AccelerationReport

__all__ = ["Accelerated"]


class Accelerated(nn.Module):
    """A network that :func:`accelerate` made: for inference on the CPU only.

    Attributes
    ----------
    network : nn.Module
        What runs. Its state dictionary has plain weights, batch norms folded where they were.
    report : AccelerationReport
        What was chosen, and how long that takes; ``print(fast.report)`` or ``print(fast)``.

    Notes
    -----
    It can be copied and pickled (``torch.save``): choices are kept, native programs are made again
    when they are first needed, without timing. Sizes of images or batches that the example did not
    have are compiled when they first come, which takes from milliseconds to seconds. Several
    Python threads may run it at the same time. ``torch.export`` and ``torch.compile`` see the
    dense network.
    """

    def __init__(
        self, network: nn.Module, report: AccelerationReport, example: Tensor, channels_last: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.report = report
        self._dtype = example.dtype
        self._n_dimensions = example.ndim
        self._channels_last = channels_last
        self.eval()

    def train(self, mode: bool = True) -> Accelerated:
        """Stay in eval mode; refuse training.

        Raises
        ------
        UnsupportedModelError
            If `mode` is true.
        """
        if mode:
            raise UnsupportedModelError(
                "train: an accelerated network is for inference only; train the network that it "
                "was made from and accelerate that again"
            )
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Any:
        """Compute what the network computes on `x` [N, ...].

        Raises
        ------
        InvalidArgumentError
            If `x` is not on the CPU, or has another dtype or number of dimensions than the example.
        UnsupportedModelError
            If `x` requires a gradient in grad mode.
        """
        self._check(x)
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return self.network(x)  # a plain graph: nothing in it requires a gradient
        with torch.no_grad():
            if self._channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            return self.network(x)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise InvalidArgumentError(f"x: expected a tensor, got {type(x).__name__}")
        if x.device.type != "cpu":
            raise InvalidArgumentError(f"x: expected a tensor on the CPU, got one on {x.device}")
        if x.dtype != self._dtype:
            raise InvalidArgumentError(f"x: expected dtype {self._dtype}, got {x.dtype}")
        if x.ndim != self._n_dimensions:
            raise InvalidArgumentError(
                f"x: expected {self._n_dimensions} dimensions, got shape {tuple(x.shape)}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise UnsupportedModelError(
                "x: an accelerated network has no gradients, but x requires one; pass x.detach() "
                "or run under torch.no_grad()"
            )

    def __str__(self) -> str:
        return str(self.report)
