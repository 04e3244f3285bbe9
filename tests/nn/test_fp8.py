"""FP8 products: codes and scales of the recordings, error against float64, gradients against a twin that rounds value by value."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.nn import fp8, fp8_cuda, fp8_grouped
from unveil.nn.grouped import plan, spread


def e4m3(x: Tensor) -> Tensor:
    """To the nearest of all 253 finite values, ties to the even code: no cast."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[((codes & 127) != 127) & (codes != 128)]  # neither nan nor -0
    finite, order = codes.view(torch.float8_e4m3fn).double().sort()
    codes = codes[order]
    above = torch.searchsorted(finite, x.double()).clamp(1, len(finite) - 1)
    low, high = finite[above - 1], finite[above]
    up = (high - x < x - low) | ((high - x == x - low) & (codes[above] % 2 == 0))
    return torch.where(up, high, low)


def rounded(x: Tensor, rows: int, columns: int, powers: bool = False) -> Tensor:
    """Tile by tile, in float64."""
    out = x.double().clone()
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            tile = out[i : i + rows, j : j + columns]
            scale = (tile.abs().max().clamp(min=1e-4).float() / 448).double()
            scale = 2 ** scale.log2().ceil() if powers else scale
            tile.copy_(e4m3((tile / scale).float().double().clamp(-448, 448)) * scale)
    return out


def test_codes_scales_and_products_of_the_recordings(data_dir: Path) -> None:
    with np.load(data_dir / "golden" / "dsv3_fp8.npz") as stored:
        z = dict(stored)
    x, weight = torch.from_numpy(z["inputs.x"]), torch.from_numpy(z["inputs.weight.q_bits"]).view(torch.float8_e4m3fn)
    for name, powers in (("none", False), ("ue8m0", True)):
        found = fp8.quantised_rows(x, powers=powers)
        np.testing.assert_array_equal(found.codes.view(torch.uint8), z[f"outputs.act_quant.{name}.q_bits"])
        np.testing.assert_array_equal(found.scales, z[f"outputs.act_quant.{name}.scale"])
    whole = torch.zeros(256, 256, dtype=torch.uint8)
    whole[:200] = weight.view(torch.uint8)
    blocks = fp8.Tiled(whole.view(torch.float8_e4m3fn), torch.from_numpy(z["inputs.weight.scale"]), (200, 256))
    np.testing.assert_array_equal(fp8.values(blocks), z["outputs.weight_dequant.y"])
    wanted = z["outputs.fp8_gemm.y"]
    found = fp8.product(fp8.quantised_rows(x), blocks).numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("rows", "width"), [(5, 300), (130, 128), (1, 70)])
def test_tiles_are_rounded_each_by_its_own_scale(rows: int, width: int) -> None:
    x = torch.randn(rows, width) * torch.logspace(-3, 2, width)
    torch.testing.assert_close(fp8.values(fp8.quantised_rows(x)).double(), rounded(x, 1, 128), rtol=1e-6, atol=0)
    torch.testing.assert_close(fp8.values(fp8.quantised_blocks(x)).double(), rounded(x, 128, 128), rtol=1e-6, atol=0)


def test_nothing_leaves_the_range() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-30, 3e38, -3e38]])
    found = fp8.values(fp8.quantised_rows(x))
    assert found.isfinite().all() and found[0, 3] == -found[0, 4] == pytest.approx(3e38)
    assert not fp8.values(fp8.quantised_rows(torch.zeros(3, 200))).any()


def test_error_of_a_product_on_normal_values() -> None:
    """3.6e-2 was measured on the same codes; float32 sums add nothing to it."""
    x, w = torch.randn(512, 4096), torch.randn(512, 4096)
    exact = x.double() @ w.double().T
    error = (fp8.product(fp8.quantised_rows(x), fp8.quantised_blocks(w)).double() - exact).norm() / exact.norm()
    assert 3.4e-2 < error < 3.7e-2


@pytest.mark.parametrize("finer", [False, True])
def test_all_three_products_are_of_codes(finer: bool) -> None:
    x, w = torch.randn(140, 150, requires_grad=True), torch.randn(140, 150, requires_grad=True)
    dy = torch.randn(140, 140)
    y = (fp8.linear_after_attention if finer else fp8.linear)(x, w)
    y.backward(dy)
    with torch.no_grad():
        x8, w8 = rounded(x, 1, 128), rounded(w, 128, 128)
        torch.testing.assert_close(y.double(), x8 @ w8.T, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(x.grad.double(), rounded(dy, 1, 128) @ w8, rtol=1e-5, atol=1e-4)  # type: ignore[union-attr]
        kept = fp8.values(fp8._e5m6(x)) if finer else x8.float()
        wanted = rounded(dy.T, 1, 128) @ rounded(kept.T, 1, 128, finer).T
        torch.testing.assert_close(w.grad.double(), wanted, rtol=1e-5, atol=1e-4)  # type: ignore[union-attr]


def test_what_attention_keeps_has_six_bits_under_powers_of_two() -> None:
    x = torch.randn(7, 300) * torch.logspace(-6, 4, 300)
    kept = fp8._e5m6(x)
    assert torch.equal(torch.exp2(torch.log2(kept.scales).round()), kept.scales)
    mantissa, exponent = torch.frexp(kept.codes.float())
    assert torch.equal(mantissa * 128, (mantissa * 128).round()) and int(exponent.max()) <= 9
    normal = kept.codes[:, :300].float().abs() >= 2**-14
    error = ((fp8.values(kept) - x).abs() / x.abs())[normal]
    assert error.max() <= 2**-7 and error.max() > 2**-8
    assert ((fp8.values(kept) - x).abs() <= kept.scales.repeat_interleave(128, 1)[:, :300] * 2**-21)[~normal].all()


def test_experts_are_their_rows_alone() -> None:
    """One expert has no row, one a single one; the same as each expert's rows through ``linear``."""
    chosen_TK = torch.tensor([[0, 2], [2, 3], [2, 0], [0, 2], [2, 0]])
    by = plan(chosen_TK, 4)
    x, w, dy = torch.randn(5, 200, requires_grad=True), torch.randn(4, 140, 200, requires_grad=True), torch.randn(10, 140)
    fp8_grouped.grouped(spread(x, by), w, by).backward(dy)
    twin_x, twin_w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    rows_SD, out = twin_x[by.rows_S], []
    for expert, (start, end) in enumerate(pairwise([0, *by.ends_E.tolist()])):
        out.append(fp8.linear(rows_SD[start:end], twin_w[expert]) if end > start else rows_SD.new_empty(0, 140))
    torch.cat(out).backward(dy)
    assert torch.equal(fp8_grouped.grouped(spread(x, by), w, by), torch.cat(out))
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-6, atol=1e-6)
    assert torch.equal(w.grad, twin_w.grad) and not w.grad[1].any()  # type: ignore[arg-type, index]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [fp8.linear, fp8.linear_after_attention])
def test_compiled_it_is_the_same(layer: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w, dy = torch.randn(200, 256), torch.randn(300, 256) * 0.02, torch.randn(200, 300) * 1e-4
    found = []
    for run in (layer, torch.compile(layer)):
        inputs = [p.clone().requires_grad_() for p in (x, w)]
        found.append([*torch.autograd.grad(run(*inputs), inputs, dy), run(x, w)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.cuda
def test_tensor_cores_multiply_the_same_codes() -> None:
    if not (torch.cuda.is_available() and fp8_cuda.fits(torch.zeros(1, device="cuda"))):
        pytest.skip("no Hopper GPU")
    x, w = torch.randn(300, 512), torch.randn(256, 512)
    for a, b in ((fp8.quantised_rows(x), fp8.quantised_blocks(w)), (fp8.quantised_rows(x), fp8.quantised_rows(w))):
        wanted = fp8.product(a, b)
        found = fp8.product(*(fp8.Tiled(x.codes.cuda(), x.scales.cuda(), x.sides) for x in (a, b))).cpu()
        # a bfloat16 on the way out, and sums of 14 bits on the way
        assert (found - wanted).norm() / wanted.norm() < 1e-2
