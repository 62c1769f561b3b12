"""What captum has to offer on one layer's channels, as the nearest thing to path effects.

Captum scores units, not edges: of a layer with I inputs and O outputs it gives I numbers an image,
where path effects give I x O besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalprune.errors import MissingDependencyError

__all__ = ["CAPTUM_PEERS", "CaptumPeer", "captum_peers"]

CAPTUM_PEERS: Mapping[str, str] = {
    "FeatureAblation": (
        "each input channel set to zero, one forward pass of the layer for each: what `unit` of "
        "path effects holds, with the sign turned"
    ),
    "LayerConductance": (
        "the gradient along the path from zero to the input, 50 steps: another quantity, "
        "for all input channels at once"
    ),
}
"""What each computes for every input channel and image."""

_CHANNELS, _STEPS, _DEFAULT_STEPS = 4, 5, 50


@dataclass(frozen=True)
class CaptumPeer:
    """One of captum's methods on a part of the work.

    Attributes
    ----------
    run : callable
        Returns attributions [N, I, H, W].
    scale : float
        Times what `run` takes, all channels and steps take.
    """

    run: Callable[[], Tensor]
    scale: float


class _Outcome(nn.Module):
    """Sum over outputs and positions of the gradient times the layer behind its ReLU, by image."""

    def __init__(self, weight: Tensor, bias: Tensor, grad: Tensor, padding: int) -> None:
        super().__init__()
        self.read = nn.Identity()  # the module whose output captum looks at
        self.weight, self.bias, self.grad, self.padding = weight, bias, grad, padding

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(self.read(x), self.weight, self.bias, padding=self.padding).relu()
        # Steps along a path come as further images, the same ones again and again.
        grad = self.grad.repeat(len(out) // len(self.grad), 1, 1, 1)
        return (out * grad).flatten(1).sum(1)


def captum_peers(
    x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, padding: int
) -> dict[str, CaptumPeer]:
    """Return captum's methods on a layer behind and before a ReLU, each on part of the work.

    The outcome is the sum of `grad` times the activated output, whose exact effects the
    gradient-weighted sums of :func:`causalprune.ops.path_effects` are.

    Parameters
    ----------
    x : Tensor [N, I, H, W], float32, CPU
    weight : Tensor [O, I, k, k]
    bias : Tensor [O]
    grad : Tensor [N, O, H, W]
    padding : int

    Returns
    -------
    dict of str to CaptumPeer
        By the names in :data:`CAPTUM_PEERS`. ``FeatureAblation`` runs on the first channels, with
        the others as one; ``LayerConductance`` on a tenth of its default steps.

    Raises
    ------
    MissingDependencyError
        If captum is not installed.
    """
    try:
        from captum.attr import FeatureAblation, LayerConductance
    except ImportError as error:
        raise MissingDependencyError(
            "captum: expected it to be installed, for example with pip install captum"
        ) from error
    outcome = _Outcome(weight, bias, grad, padding)
    inputs = x.shape[1]
    features = min(inputs, _CHANNELS + 1)
    mask = torch.arange(inputs).clamp(max=features - 1).reshape(1, -1, 1, 1).expand(1, *x.shape[1:])
    ablation = FeatureAblation(outcome)
    conductance = LayerConductance(outcome, outcome.read)

    def conduct() -> Tensor:
        with torch.enable_grad():
            found: Tensor = conductance.attribute(x, n_steps=_STEPS)
        return found.detach()

    return {
        # The plain pass and one for every feature; one more gradient than there are steps.
        "FeatureAblation": CaptumPeer(
            partial(ablation.attribute, x, feature_mask=mask), (inputs + 1) / (features + 1)
        ),
        "LayerConductance": CaptumPeer(conduct, (_DEFAULT_STEPS + 1) / (_STEPS + 1)),
    }
