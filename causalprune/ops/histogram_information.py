"""Mutual information between every pair of two sets of variables, from joint histograms."""

from __future__ import annotations

import torch
from torch import Tensor

from causalprune import _native
from causalprune.errors import InvalidArgumentError
from causalprune.ops.registration import register_operator

__all__ = ["histogram_information"]


def histogram_information(x: Tensor, y: Tensor, bins: int = 64) -> Tensor:
    r"""Plug-in mutual information, in bits, between each column of `x` and each column of `y`.

    Every column is cut into `bins` bins of equal width between its least and largest value (the
    largest belongs to the last bin); with :math:`p_{ab}` the shares of a pair's joint histogram,

    .. math:: I_{oi} = \sum_{ab} p_{ab} \log_2 \frac{p_{ab}}{p_{a\cdot}\, p_{\cdot b}}.

    Parameters
    ----------
    x : Tensor [N, I], float32, CPU or CUDA
        One row per sample, any strides. A build without CUDA kernels copies CUDA tensors to the
        CPU.
    y : Tensor [N, O], float32, on the device of `x`
    bins : int
        2 to 256.

    Returns
    -------
    Tensor [O, I], float64, on the device of `x`
        Bits; exactly 0 where a column has one value only. The same for any number of threads.

    Raises
    ------
    InvalidArgumentError
        (a ``ValueError``) for a wrong dtype, shape, device, number of bins, or for values that are
        not finite. On CUDA values are not read back: there the information of a column that is
        not finite is NaN.

    Notes
    -----
    The estimate is biased upwards by about ``(a - 1) (b - 1) / (2 N ln 2)`` bits, `a` and `b` the
    numbers of bins in use (Miller 1955): compare it with that of shuffled samples. Agrees with
    :func:`causalprune.reference.histogram_information` to 1e-12 bits. Not differentiable.

    Examples
    --------
    >>> import torch
    >>> from causalprune.ops import histogram_information
    >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> histogram_information(x, x[:, :1], bins=2)    # its own entropy; nothing of the other
    tensor([[1., 0.]], dtype=torch.float64)
    """
    check_samples(x=x, y=y)
    if not isinstance(bins, int) or isinstance(bins, bool) or not 2 <= bins <= 256:
        raise InvalidArgumentError(f"bins: expected an int from 2 to 256, got {bins!r}")
    try:
        found: Tensor = torch.ops.causalprune.histogram_information(x, y, bins)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
    return found


def check_samples(**tensors: Tensor) -> None:
    """Refuse what is not float32 samples [N, columns] on one device, by name."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided:
            raise InvalidArgumentError(f"{name}: expected a dense tensor, got {tensor.layout}")
        if tensor.dtype != torch.float32:
            raise InvalidArgumentError(f"{name}: expected dtype float32, got {tensor.dtype}")
        if tensor.ndim != 2:
            raise InvalidArgumentError(
                f"{name}: expected samples [N, columns], got shape {list(tensor.shape)}"
            )
        if len(tensor) != len(first):
            raise InvalidArgumentError(
                f"{name}: expected {len(first)} samples, as {first_name} has, got {len(tensor)}"
            )
        if tensor.device != first.device or tensor.device.type not in ("cpu", "cuda", "meta"):
            raise InvalidArgumentError(
                f"{name}: expected a CPU or CUDA tensor on one device with {first_name} "
                f"({first.device}), got one on {tensor.device}"
            )


def _fake(x: Tensor, y: Tensor, bins: int) -> Tensor:
    return x.new_empty((y.shape[1], x.shape[1]), dtype=torch.float64)


def _cpu(x: Tensor, y: Tensor, bins: int) -> Tensor:
    information = _fake(x, y, bins)
    _native.histogram_information(x, y, information, bins, torch.get_num_threads())
    return information


def _cuda(x: Tensor, y: Tensor, bins: int) -> Tensor:
    if not _native.with_cuda:
        return _cpu(x.cpu(), y.cpu(), bins).to(x.device)
    information = _fake(x, y, bins)
    size = _native.histogram_information_cuda_workspace(len(x), x.shape[1], y.shape[1], bins)
    workspace = x.new_empty(size, dtype=torch.float64)
    _native.histogram_information_cuda(x, y, information, workspace, bins)
    return information


register_operator(
    "histogram_information",
    "(Tensor x, Tensor y, int bins) -> Tensor",
    kernels={"CPU": _cpu, "CUDA": _cuda},
    fake=_fake,
    not_differentiable="a histogram is constant almost everywhere; call it under torch.no_grad()",
)
