"""Types of the compiled extension (csrc/bindings)."""

from collections.abc import Sequence

from torch import Tensor

version: str
compiler: str
with_cuda: bool
with_openmp: bool

def available_isas() -> list[str]: ...
def chosen_isa() -> str: ...
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
