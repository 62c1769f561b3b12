"""Types of the compiled extension (csrc/bindings)."""

from collections.abc import Sequence

from torch import Tensor

version: str
compiler: str
with_cuda: bool
with_openmp: bool

def available_isas() -> list[str]: ...
def channel_update(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    out: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
    threads: int,
    isa: str = "",
) -> None: ...
def chosen_isa() -> str: ...
def histogram_information(
    x: Tensor, y: Tensor, information: Tensor, bins: int, threads: int
) -> None: ...
def path_effects(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None,
    edge: Tensor,
    unit: Tensor,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    threads: int,
    isa: str = "",
) -> None: ...
def spanning_tree_crossings(
    children: Tensor,
    parents: Tensor,
    crossings: Tensor,
    child_block: int,
    parent_block: int,
    threads: int,
    isa: str = "",
) -> None: ...
def relative_sensitivity(
    x: Tensor,
    weight: Tensor,
    sensitivity: Tensor,
    aggregate: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    threads: int,
    isa: str = "",
) -> None: ...

# The following exist only in builds with CUDA kernels.
def cuda_status() -> tuple[int, int, str]: ...
def path_effects_cuda(
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    grad: Tensor | None,
    edge: Tensor,
    unit: Tensor,
    workspace: Tensor,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None: ...
def path_effects_cuda_workspace(
    n_images: int, n_inputs: int, n_outputs: int, groups: int
) -> int: ...
