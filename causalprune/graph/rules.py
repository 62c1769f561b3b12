"""One rule per operator: how units travel from its inputs to its output.

A rule gets the walk and the node and returns the flow of the node's value (``None``: it carries
no units). It reads the arguments of the node and the shapes of the values only. An operator
without a rule refuses the units it reads by name, never in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx, nn

from causalprune.graph import rules_arithmetic as arithmetic
from causalprune.graph import rules_attention as attention
from causalprune.graph import rules_joins as joins
from causalprune.graph import rules_layers as layers
from causalprune.graph import rules_shapes as shapes
from causalprune.graph.flow import Flow, Walk, describe

__all__ = [
    "FUNCTION_RULES_BY_NAME",
    "MODULE_RULES",
    "SEVERAL_INPUTS",
    "describe",
    "operator_name",
    "overwritten_by",
    "rule_of",
]

Rule = Callable[[Walk, fx.Node], "Flow | None"]

_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Threshold, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
)  # fmt: skip
_INERT = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip

MODULE_RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: layers.conv2d,
    nn.Linear: layers.linear,
    nn.BatchNorm1d: layers.batch_norm,
    nn.BatchNorm2d: layers.batch_norm,
    nn.InstanceNorm2d: layers.batch_norm,
    nn.LayerNorm: layers.layer_norm_layer,
    nn.RMSNorm: layers.layer_norm_layer,
    nn.GroupNorm: layers.group_norm,
    nn.PReLU: layers.prelu,
    nn.MultiheadAttention: layers.multihead_attention,
    nn.Flatten: shapes.flatten,
    nn.Unflatten: shapes.unflatten,
    nn.ZeroPad2d: joins.pad,
    nn.ConstantPad2d: joins.pad,
    nn.Softmax: arithmetic.along_dimension,
    nn.LogSoftmax: arithmetic.along_dimension,
    **dict.fromkeys((*_ACTIVATIONS, *_INERT), shapes.pass_on),
    **dict.fromkeys(_POOLS, arithmetic.pool),
}
"""Rules by the exact class of a layer: a subclass may compute something else."""

_ELEMENTWISE = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "logsigmoid",
    "log_sigmoid", "threshold", "_threshold", "dropout", "dropout1d", "dropout2d",
    "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "abs", "neg",
    "square", "sqrt", "rsqrt", "exp", "log", "pow", "clamp", "clamp_min", "clamp_max", "clip",
    "contiguous", "clone", "detach", "alias", "float", "double", "half", "bfloat16", "to", "type",
    "_to_copy", "stochastic_depth", "drop_block2d",
)  # fmt: skip
_POOLING = (
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d",
    "interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample",
)  # fmt: skip

FUNCTION_RULES_BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, shapes.pass_on),
    **dict.fromkeys(_POOLING, arithmetic.pool),
    **dict.fromkeys(
        ("add", "iadd", "sub", "isub", "maximum", "minimum", "fmax", "fmin"), arithmetic.add
    ),
    **dict.fromkeys(("mul", "imul", "multiply", "truediv", "itruediv", "div"), arithmetic.multiply),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), arithmetic.reduce),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum"),
                    arithmetic.along_dimension),
    **dict.fromkeys(("layer_norm", "rms_norm"), arithmetic.layer_norm),
    "flatten": shapes.flatten,
    "unflatten": shapes.unflatten,
    "unsqueeze": shapes.unsqueeze,
    "squeeze": shapes.squeeze,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), shapes.view),
    **dict.fromkeys(("view_as", "reshape_as"), shapes.reshape_as),
    **dict.fromkeys(("permute",), shapes.permute),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t"), shapes.transpose),
    "roll": shapes.roll,
    "getitem": shapes.getitem,
    "select": shapes.select,
    **dict.fromkeys(("slice", "narrow"), shapes.slice_dim),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unbind"), shapes.chunk),
    **dict.fromkeys(("cat", "concat", "concatenate"), joins.cat),
    "stack": joins.stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), joins.pad),
    "expand": joins.expand,
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    **dict.fromkeys(("matmul", "bmm"), attention.matmul),
    "masked_fill": attention.masked_fill,
    "shifted_window_attention": layers.shifted_window_attention,
    "_patch_merging_pad": joins.patch_merging,
}  # fmt: skip
"""Rules of functions and tensor methods, by the name of the operator (``relu_`` is ``relu``)."""

SEVERAL_INPUTS: tuple[Rule, ...] = (
    arithmetic.add, arithmetic.multiply, joins.cat, joins.stack, shapes.reshape_as,
    layers.multihead_attention,
    attention.scaled_dot_product_attention, attention.matmul,
)  # fmt: skip
"""Rules that look at every input; all others expect units in the first one only."""

_ROOMS = ("torch", "_operator", "operator", "builtins", "torchvision.")


def operator_name(node: fx.Node) -> str:
    """Name of the operator that a call of a function or method stands for, or ``""``.

    The functions of torch, its operators (``aten.relu.default``) and its tensors' methods share
    their names; a function of another library of the same name is another one.
    """
    if node.op == "call_method":
        name = str(node.target)
    else:
        module = getattr(node.target, "__module__", None) or ""
        if not module.startswith(_ROOMS):
            return ""
        name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def overwritten_by(node: fx.Node) -> fx.Node | None:
    """Return the value that an in-place operator writes its result to, or ``None``."""
    source = node.args[0] if node.args else None
    if node.op not in ("call_function", "call_method") or not isinstance(source, fx.Node):
        return None
    if node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
        return source
    name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
    return source if name.endswith("_") and not name.endswith("__") else None


def rule_of(walk: Walk, node: fx.Node) -> Rule | None:
    """Return the rule of the operator of `node`, or ``None`` where there is none."""
    if node.op == "call_module":
        return MODULE_RULES.get(type(walk.modules[str(node.target)]))
    return FUNCTION_RULES_BY_NAME.get(operator_name(node))
