"""What acceleration chose for every layer, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["AccelerationReport", "LayerChoice"]


@dataclass(frozen=True)
class LayerChoice:
    """One convolution or linear layer.

    Attributes
    ----------
    layer : str
        Dotted name of the module.
    sparsity : float
        Share of its weights that are zero, in [0, 1].
    kernel : str
        ``"sparse"`` (nonzero weights only), ``"packed dense"`` or ``"torch"``.
    before_ms, after_ms : float
        Milliseconds a batch of the example, in the fastest dense network and now; NaN where it
        was not timed. Now includes what is fused with it.
    """

    layer: str
    sparsity: float
    kernel: str
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class AccelerationReport:
    """Outcome of :func:`causalprune.accelerate`; prints as a table.

    Attributes
    ----------
    chosen : str
        The candidate that was kept.
    candidates_ms : mapping of str to float
        Milliseconds a batch of every candidate, timed in turns; the first is the input model.
    layers : tuple of LayerChoice
    batch, threads : int
    note : str
        Why nothing is packed, where nothing is.
    """

    chosen: str
    candidates_ms: Mapping[str, float]
    layers: tuple[LayerChoice, ...]
    batch: int
    threads: int
    note: str = ""
    version: int = field(default=1, repr=False)

    @property
    def before_ms(self) -> float:
        """Milliseconds of the input model."""
        return next(iter(self.candidates_ms.values()), math.nan)

    @property
    def after_ms(self) -> float:
        """Milliseconds of what was returned."""
        return self.candidates_ms.get(self.chosen, math.nan)

    def __str__(self) -> str:
        width = max([5, *(len(each.layer) for each in self.layers)])
        head = f"{'layer':{width}}  sparsity  {'kernel':12}  before ms  after ms"
        lines = [head, "-" * len(head)]
        for each in self.layers:
            lines.append(
                f"{each.layer:{width}}  {each.sparsity:8.1%}  {each.kernel:12}  "
                f"{each.before_ms:9.3f}  {each.after_ms:8.3f}"
            )
        lines.append("-" * len(head))
        unit = "CPU time of one thread" if self.threads == 1 else f"{self.threads} threads"
        lines.append(f"whole network, batch of {self.batch}, {unit}:")
        for name, ms in self.candidates_ms.items():
            mark = "  <- kept" if name == self.chosen else ""
            lines.append(f"  {name:28} {ms:10.3f} ms{mark}")
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)
