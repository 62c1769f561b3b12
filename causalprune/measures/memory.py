"""Peak memory of the activations of one forward pass, measured."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causalprune.graph import evaluating
from causalprune.measures.size import require_tensor

__all__ = ["peak_activation_bytes"]


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive, as operators make them and Python frees them."""

    def __init__(self, ignored: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ignored = ignored
        self._live: dict[int, int] = {}
        self._live_bytes = 0
        self.peak_bytes: int = 0

    def add(self, tensor: Tensor) -> None:
        """Count the storage behind ``tensor`` until it dies; a view adds nothing."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        # torch keeps one Python object per storage alive as long as the storage itself, so this
        # runs when the memory is really given back.
        weakref.finalize(storage, self._remove, key).atexit = False

    def _remove(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key, 0)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def peak_activation_bytes(model: nn.Module, example: Tensor) -> int:
    """Measure the most activation memory alive at once during a forward pass.

    Every storage that an operator returns is counted from its creation until it is freed; views
    add nothing, and neither do parameters and buffers (see ``parameter_bytes``). The input
    counts, because it has to be held as well. Workspace inside an operator is not visible
    here. The figure is a sum of sizes, hence the same on every run.

    Parameters
    ----------
    model : nn.Module
        The network; it runs once, in evaluation mode without gradients.
    example : Tensor
        Input ``[N, ...]`` on the network's device; the figure is for this batch size.

    Returns
    -------
    int
        Peak bytes.

    Raises
    ------
    InvalidArgumentError
        ``example`` is not a tensor.

    Examples
    --------
    The input (16 bytes), the first layer's output and its rectified copy (32 bytes each):

    >>> import torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> peak_activation_bytes(network, torch.zeros(1, 4))
    80
    """
    require_tensor(example)
    own: list[Tensor] = [*model.parameters(), *model.buffers()]
    ignored = frozenset(tensor.untyped_storage()._cdata for tensor in own)
    # A copy of its own, so that an input cut from a larger tensor counts as itself only.
    batch = example.detach().clone()
    live = _LiveStorages(ignored)
    with evaluating(model), torch.no_grad(), live:
        live.add(batch)
        model(batch)
    return live.peak_bytes
