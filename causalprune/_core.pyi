"""Types of the compiled extension (csrc/bindings)."""

from collections.abc import Sequence

from torch import Tensor

version: str
compiler: str
with_cuda: bool
with_openmp: bool

class PackedLayout:
    def __init__(
        self,
        shape: Sequence[int],
        lanes: Sequence[int],
        strip: Sequence[int],
        halo: Sequence[int],
    ) -> None: ...
    @property
    def floats(self) -> int: ...

class PackedConvolution:
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        source: PackedLayout,
        target: PackedLayout,
        inputs: Sequence[int],
        outputs: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        activation: str,
        blocking: Sequence[int],
        threads: int,
        isa: str = "",
    ) -> None: ...
    @property
    def blocking(self) -> tuple[int, int, int, int]: ...
    @property
    def n_taps(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class PackedProgram:
    def __init__(self, isa: str = "") -> None: ...
    def buffer(self, layout: PackedLayout) -> int: ...
    def slice(self, buffer: int, first_channel: int, n_channels: int) -> int: ...
    def pack(self, argument: int, target: int) -> None: ...
    def unpack(self, source: int, argument: int) -> None: ...
    def global_average(self, source: int, argument: int) -> None: ...
    def convolve(
        self, plan: PackedConvolution, source: int, target: int, residual: int = -1
    ) -> None: ...
    def fill_halo(self, buffer: int, outside: float) -> None: ...
    def pool(
        self,
        kind: str,
        source: int,
        target: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        count_padding: bool,
    ) -> None: ...
    def combine(
        self,
        a: int,
        b: int,
        target: int,
        scale: Tensor | None,
        shift: Tensor | None,
        activation: str,
    ) -> None: ...
    def finish(self) -> None: ...
    @property
    def workspace_floats(self) -> int: ...
    def run(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        workspace: Tensor,
        stop_at_nonfinite: bool,
        threads: int,
    ) -> bool: ...

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
def count_contingencies(
    sets: Tensor, flipped: Tensor, counts: Tensor, first: Tensor, threads: int, isa: str = ""
) -> None: ...
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
def increments_per_second() -> float: ...
def peak_gflops(isa: str = "") -> float: ...
def read_gigabytes_per_second(bytes: int, isa: str = "") -> float: ...
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
def channel_conv2d_cuda(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    others: Tensor,
    out: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> None: ...
def channel_update_cuda(
    plain: Tensor,
    difference: Tensor,
    weight: Tensor,
    out: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
) -> None: ...
def cuda_status() -> tuple[int, int, str]: ...
def histogram_information_cuda(
    x: Tensor, y: Tensor, information: Tensor, workspace: Tensor, bins: int
) -> None: ...
def histogram_information_cuda_workspace(n_samples: int, n_x: int, n_y: int, bins: int) -> int: ...
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
def relative_sensitivity_cuda(
    x: Tensor,
    weight: Tensor,
    sensitivity: Tensor,
    workspace: Tensor,
    aggregate: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None: ...
def relative_sensitivity_cuda_workspace(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> int: ...
def sparse_conv2d_cuda(
    x: Tensor,
    channel: Tensor,
    row_start: Tensor,
    entries: Tensor,
    out: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> None: ...
