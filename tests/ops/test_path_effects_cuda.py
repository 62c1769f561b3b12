"""The CUDA kernel against the float64 oracle; runs wherever a GPU and a CUDA build are at hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from causalprune import _native
from causalprune.ops import path_effects
from causalprune.reference import ACTIVATIONS
from causalprune.reference import path_effects as oracle

pytestmark = [
    pytest.mark.skipif(not _native.with_cuda, reason="this build has no CUDA kernels"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

# images, inputs, outputs, height, width, kernel, stride, padding, dilation, groups
SHAPES = [
    (2, 3, 5, 7, 9, 3, 1, 1, 1, 1),
    (3, 15, 33, 14, 14, 3, 1, 1, 1, 1),
    (2, 33, 17, 9, 11, 1, 1, 0, 1, 1),
    (2, 8, 12, 13, 10, 3, 2, 1, 1, 1),
    (2, 8, 12, 13, 10, 3, 1, 2, 2, 4),
    (1, 6, 16, 14, 14, 5, 1, 0, 1, 1),
    (2, 16, 16, 9, 9, 3, 1, 1, 1, 16),
    (33, 15, 97, 1, 1, 1, 1, 0, 1, 1),
    (20, 2, 3, 40, 33, 7, 2, 3, 1, 1),
]


def draw(shape: tuple[int, ...], *, with_grad: bool) -> tuple[list[torch.Tensor | None], dict]:
    images, inputs, outputs, height, width, kernel, stride, padding, dilation, groups = shape
    x = torch.randn(images, inputs, height, width, device="cuda")
    fan_in = inputs // groups * kernel**2
    weight = torch.randn(outputs, inputs // groups, kernel, kernel, device="cuda") / fan_in**0.5
    pre = F.conv2d(
        x.double(), weight.double(), None, stride, padding, dilation, groups
    ).float() + 0.1 * torch.randn(outputs, 1, 1, device="cuda")
    grad = torch.randn_like(pre) if with_grad else None
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [x, weight, pre, grad], options


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().flatten(0, 1).amax(0)
    assert bool(((found - expected).abs() <= 1e-5 * expected.abs() + 1e-5 * scale).all())


@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_definition(shape, activation, with_grad) -> None:
    torch.manual_seed(sum(shape))
    tensors, options = draw(shape, with_grad=with_grad)
    edge, unit = path_effects(*tensors, activation=activation, **options)
    expected_edge, expected_unit = oracle(*tensors, activation=activation, **options)
    agree(edge, expected_edge)
    agree(unit[..., None], expected_unit[..., None])


def test_agrees_with_the_cpu_on_channels_last_input() -> None:
    tensors, options = draw(SHAPES[1], with_grad=True)
    strided = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    edge, unit = path_effects(*strided, **options)
    cpu_edge, cpu_unit = path_effects(*(t.cpu() for t in tensors), **options)
    agree(edge.cpu(), cpu_edge)
    agree(unit.cpu()[..., None], cpu_unit[..., None])


def test_is_deterministic() -> None:
    tensors, options = draw(SHAPES[3], with_grad=True)
    first, second = (path_effects(*tensors, **options) for _ in range(2))
    assert torch.equal(first.edge, second.edge)
    assert torch.equal(first.unit, second.unit)


def test_follows_the_current_stream() -> None:
    tensors, options = draw(SHAPES[2], with_grad=True)
    expected = path_effects(*tensors, **options).unit
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = path_effects(*tensors, **options).unit
    stream.synchronize()
    assert torch.equal(found, expected)


def test_empty_batch_gives_zero_effects() -> None:
    tensors, options = draw(SHAPES[0], with_grad=True)
    x, weight, pre, grad = tensors
    edge, unit = path_effects(x[:0], weight, pre[:0], grad[:0], **options)
    assert unit.shape == (0, 3)
    assert not edge.any()


def test_non_finite_input_shows_in_the_effects() -> None:
    tensors, options = draw(SHAPES[0], with_grad=False)
    tensors[0][1, 2, 3, 4] = torch.nan
    edge, unit = path_effects(*tensors, **options)
    assert unit[1, 2].isnan()
    assert edge[:, 2].isnan().any()
    assert unit[0].isfinite().all()


def test_wrong_shapes_name_the_argument() -> None:
    tensors, options = draw(SHAPES[0], with_grad=False)
    with pytest.raises(ValueError, match=r"^pre: expected"):
        path_effects(tensors[0], tensors[1], tensors[2][..., :-1], **options)
