"""Batch norms disappear into the convolutions before them."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["fold_batch_norms"]


def fold_batch_norms(traced: fx.GraphModule) -> int:
    """Fold every batch norm that alone reads one convolution into it, in place.

    Parameters
    ----------
    traced : fx.GraphModule
        In eval mode. Its convolutions are replaced by new ones; the old ones stay as they were.

    Returns
    -------
    int
        Number of batch norms that are gone. What a layer that is called twice computes, or one
        that has hooks, stays.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> traced = fx.symbolic_trace(model)
    >>> fold_batch_norms(traced)
    1
    >>> [str(node.target) for node in traced.graph.nodes]
    ['input', '0', '2', 'output']
    """
    calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
    n_folded = 0
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) != 1:
            continue
        if not all(n.op == "call_module" and calls[str(n.target)] == 1 for n in (node, source)):
            continue
        norm, layer = (traced.get_submodule(str(n.target)) for n in (node, source))
        if not _folds(norm, layer):
            continue
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(layer, nn.Conv2d)
        traced.set_submodule(str(source.target), fuse_conv_bn_eval(layer, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
        n_folded += 1
    traced.delete_all_unused_submodules()
    traced.recompile()
    return n_folded


def _folds(norm: nn.Module, layer: nn.Module) -> bool:
    if type(norm) is not nn.BatchNorm2d or type(layer) is not nn.Conv2d:
        return False
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in (norm, layer)]
    return norm.running_mean is not None and norm.running_var is not None and not any(hooks)
