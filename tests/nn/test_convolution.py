"""Convolutions against torch's own, and the doubling one against doubling first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.nn.convolution import Conv, DoublingConv

SIZES = [(4, 4), (1, 3), (5, 2)]


def drawn(conv: Conv) -> Conv:
    for p in conv.double().parameters():
        torch.nn.init.normal_(p)
    return conv


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()


def doubled_then_convolved(conv: Conv, x: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight.permute(0, 3, 1, 2), conv.bias, padding=1)


@pytest.mark.parametrize("size", SIZES)
def test_doubling_and_convolving_are_one(size: tuple[int, int]) -> None:
    conv, x = drawn(DoublingConv(3, 5)), image(2, 3, *size)
    torch.testing.assert_close(conv(x), doubled_then_convolved(conv, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_their_gradients_are_one_too(size: tuple[int, int]) -> None:
    conv, x = drawn(DoublingConv(3, 5)), image(2, 3, *size)
    inputs, weights = (x, *conv.parameters()), torch.randn(2, 5, 2 * size[0], 2 * size[1], dtype=torch.float64)
    ours, twin = (torch.autograd.grad(f(x), inputs, weights) for f in (conv, lambda x: doubled_then_convolved(conv, x)))
    torch.testing.assert_close(ours, twin, rtol=0, atol=1e-12)


def test_a_whole_jacobian_at_once_and_a_second_derivative() -> None:
    conv, x = drawn(DoublingConv(2, 1)), image(1, 2, 2, 3)
    rows = torch.func.vmap(torch.func.vjp(conv, x)[1])(torch.eye(24, dtype=torch.float64).view(24, 1, 1, 4, 6))[0]
    columns = torch.stack([conv(e) - conv(torch.zeros_like(x)) for e in torch.eye(12, dtype=torch.float64).view(12, 1, 2, 2, 3)])
    torch.testing.assert_close(rows.flatten(1), columns.flatten(1).T, rtol=0, atol=1e-12)
    torch.autograd.gradgradcheck(conv, (x,))


def test_it_never_makes_the_doubled_image() -> None:
    conv, x = drawn(DoublingConv(64, 1)), image(1, 64, 16, 16)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        conv(x)
    assert max(saved) <= x.numel()


@pytest.mark.parametrize("corner", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_a_strided_convolution_halves_rounding_up(size: tuple[int, int], corner: bool) -> None:
    x = image(1, 3, *size)
    assert drawn(Conv(3, 2, stride=2, corner=corner))(x).shape[2:] == tuple(-(-n // 2) for n in size)


def test_the_layout_stays_channels_last() -> None:
    x = image(2, 8, 4, 4)
    for conv in (Conv(8, 6), DoublingConv(8, 6), Conv(8, 6, stride=2, corner=True)):
        y = drawn(conv)(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert y.is_contiguous(memory_format=torch.channels_last) and grad.is_contiguous(memory_format=torch.channels_last)
        assert all(p.is_contiguous() for p in conv.parameters())


def test_bfloat16_activations_take_float32_masters() -> None:
    conv = drawn(DoublingConv(4, 4)).float()
    y = conv(image(1, 4, 4, 4).bfloat16())
    assert y.dtype == torch.bfloat16 and conv.weight.dtype == torch.float32
