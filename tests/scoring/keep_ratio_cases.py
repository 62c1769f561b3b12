"""What the tests of wt, sipp, ft and pfp share: the networks, and what their layers read."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from networks import depthwise, images, lenet, mlp, residual, vgg
from torch import Tensor, nn

from causalprune import reference

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lenet,
    "residual": residual,
    "vgg": vgg,
    "depthwise": depthwise,
    "mlp": mlp,
}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


def inputs_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every convolution and linear layer reads, as images [N, I, H, W]."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            value = args[0].detach().clone()
            found[name] = value if value.ndim == 4 else value[:, :, None, None]

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(keep(n)) for n in weights_of(model)]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def sensitivities_of(model: nn.Module, x: Tensor, aggregate: str) -> dict[str, Tensor]:
    """Relative sensitivities by the float64 definition, in the shape of the weights."""
    inputs, found = inputs_of(model, x), {}
    for name, weight in weights_of(model).items():
        module = model.get_submodule(name)
        options = {}
        if isinstance(module, nn.Conv2d):
            options = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups")}
        kernel = weight if weight.ndim == 4 else weight[:, :, None, None]
        values = reference.relative_sensitivity(
            inputs[name], kernel, aggregate=aggregate, **options
        )
        found[name] = values.reshape(weight.shape)
    return found


def importance_of(frame: pd.DataFrame) -> dict[str, Tensor]:
    return {
        str(name): torch.from_numpy(rows["importance"].to_numpy(copy=True))
        for name, rows in frame.groupby("group", sort=False)
    }


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def some_images(n: int = 3, seed: int = 5) -> Tensor:
    return images(n, seed)
