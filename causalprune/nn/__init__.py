"""Modules that run pruned networks faster, built on the native operators."""

from causalprune.nn.accelerated import Accelerated
from causalprune.nn.acceleration import accelerate
from causalprune.nn.acceleration_report import AccelerationReport, LayerChoice
from causalprune.nn.channels import ChannelPrunedConv2d
from causalprune.nn.sparse import SparseConv2d, SparseLinear

__all__ = [
    "Accelerated",
    "AccelerationReport",
    "ChannelPrunedConv2d",
    "LayerChoice",
    "SparseConv2d",
    "SparseLinear",
    "accelerate",
]
