"""How an operator enters torch: one call for schema, kernels, fake and autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from causalprune import _native
from causalprune.errors import InvalidArgumentError

__all__ = ["expect_cuda_build", "kernel_device", "register_operator"]

# Lives as long as the process: a Library takes its registrations with it when it is collected.
_LIBRARY: Any = torch.library.Library("causalprune", "FRAGMENT")  # type: ignore[no-untyped-call]


def expect_cuda_build() -> None:
    """Refuse CUDA tensors where the extension was built without CUDA kernels.

    Raises
    ------
    InvalidArgumentError
        In such a build.
    """
    if not _native.with_cuda:
        raise InvalidArgumentError(
            "x: expected a CPU tensor, got one on CUDA: this build of causalprune has no CUDA "
            "kernels (build it with nvcc on the PATH; causalprune.info() tells)"
        )


def kernel_device(tensor: torch.Tensor) -> torch.device:
    """Return where the native kernels take a tensor: where it is, if they are built for that.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    torch.device
        That of `tensor` where it is CUDA and this build has CUDA kernels, else the CPU.
    """
    on_gpu = tensor.device.type == "cuda" and _native.with_cuda
    return tensor.device if on_gpu else torch.device("cpu")


def register_operator(
    name: str,
    signature: str,
    *,
    kernels: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    not_differentiable: str = "",
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register ``causalprune::<name>``.

    Parameters
    ----------
    name : str
        The operator's name inside the ``causalprune`` namespace.
    signature : str
        Arguments and results in torch's schema language, ``(Tensor x) -> Tensor``.
    kernels : mapping of str to callable
        One kernel for each dispatch key, ``{"CPU": ..., "CUDA": ...}``.
    fake : callable
        Reproduces shape, stride, dtype and device of the results from metadata alone.
    not_differentiable : str
        Why the operator has no derivative; raised when a backward pass reaches it.
    setup_context, backward : callable, optional
        Its derivative, as :func:`torch.library.register_autograd` takes it, where it has one.
    """
    _LIBRARY.define(f"{name}{signature}")
    for key, kernel in kernels.items():
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"causalprune::{name}", fake, lib=_LIBRARY)

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"causalprune::{name} has no derivative: {not_differentiable}")

    torch.library.register_autograd(
        f"causalprune::{name}", backward or refuse, setup_context=setup_context, lib=_LIBRARY
    )
