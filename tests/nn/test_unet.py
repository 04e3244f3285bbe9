"""The UNet beside diffusers' (``tests/interop`` compares the numbers): sizes, layout, conditions, dtypes, what compiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.config import UNetConfig
from unveil.nn.convolution import Conv
from unveil.nn.unet import UNet
from unveil.nn.unet_blocks import Attention, GroupNorm, ResBlock

SMALL = UNetConfig(in_channels=2, channels=(16, 32), attention=("none", "both"), layers=1, groups=4, head_width=16)


def build(config: UNetConfig = SMALL) -> UNet:
    """With no weight at zero, so that everything reaches the output."""
    torch.manual_seed(0)
    network = UNet(config)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return network.double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def levels(count: int) -> Tensor:
    return torch.linspace(-1, 1, count, dtype=torch.float64)


@pytest.mark.parametrize("resample", ["conv", "resnet", "corner-conv"])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 4)])
def test_any_resolution(size: tuple[int, int], resample: Any) -> None:
    up = "resnet" if resample == "resnet" else "conv"
    network = build(replace(SMALL, channels=(16, 16, 32), attention=("none", "none", "both"), downsample=resample, upsample=up))
    y = network(image(2, 2, *size), levels(2))
    assert y.shape == (2, 2, *size) and y.isfinite().all()


def test_a_learned_variance_doubles_the_channels() -> None:
    assert build(replace(SMALL, out_channels=4))(image(1, 2, 8, 8), levels(1)).shape == (1, 4, 8, 8)


def test_every_weight_moves_the_output() -> None:
    network = build(replace(SMALL, classes=3, embedding=4, augmentation=5, downsample="resnet", upsample="resnet"))
    told = {"classes": torch.tensor([0, 1]), "embedding": image(2, 4), "augmentation": image(2, 5)}
    network(image(2, 2, 8, 8), levels(2), **told).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network, x, c = build(), image(3, 2, 8, 8), levels(3)
    alone = torch.cat([network(x[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, c), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("condition", ["shift", "scale-shift"])
def test_noise_level_and_class_reach_the_output(condition: Any) -> None:
    network, x = build(replace(SMALL, classes=3, condition=condition)), image(1, 2, 8, 8)
    one, other, third = (network(x, torch.tensor([c]), torch.tensor([k])) for c, k in ((0.1, 0), (0.2, 0), (0.1, 1)))
    assert (one - other).abs().max() > 1e-3 and (one - third).abs().max() > 1e-3
    torch.testing.assert_close(network(x, torch.tensor([0.1])), network(x, torch.tensor([0.1]), torch.tensor([3])), rtol=0, atol=0)


def test_adaptive_group_norm_scales_and_shifts() -> None:
    block = ResBlock(SMALL, 16, 16).double()
    for p in block.parameters():
        nn.init.normal_(p)
    x, told = image(2, 16, 4, 4), image(2, 32)
    normed = torch.nn.functional.group_norm
    silu = torch.nn.functional.silu
    h = block.conv1(silu(normed(x, 4, block.norm1.weight, block.norm1.bias, 1e-5)))
    h = normed(h, 4, block.norm2.weight, block.norm2.bias, 1e-5) * (1 + told[:, :16, None, None]) + told[:, 16:, None, None]
    torch.testing.assert_close(block(x, told), x + block.conv2(silu(h)), rtol=0, atol=1e-12)


def test_attention_is_where_it_is_asked_for() -> None:
    network = build(replace(SMALL, channels=(16, 16, 16, 16), attention=("none", "both", "down", "up"), layers=2, middle="plain"))
    counts = [sum(isinstance(m, Attention) for m in level.modules()) for level in (*network.down, *network.up)]
    assert counts == [0, 2, 2, 0, 3, 0, 3, 0]


@pytest.mark.parametrize(("middle", "blocks", "norms"), [("attention", 2, 1), ("bare-attention", 2, 0), ("plain", 2, -1), ("none", 0, -1)])
def test_the_middle(middle: Any, blocks: int, norms: int) -> None:
    level = build(replace(SMALL, middle=middle)).middle
    assert len(level.blocks) == blocks
    attention = [m for m in level.attention if isinstance(m, Attention)]
    assert len(attention) == (norms >= 0) and all((a.norm is not None) == norms for a in attention)


def test_every_pixel_sees_every_other() -> None:
    attention = Attention(SMALL, 32, normed=False).double()
    for p in attention.parameters():
        nn.init.normal_(p, std=0.3)
    x = image(1, 32, 2, 3)
    tokens = x.flatten(2).transpose(1, 2)[0]
    q, k, v = (attention.qkv.weight @ tokens.T + attention.qkv.bias[:, None]).unflatten(0, (3, 2, 16))
    weights = (torch.einsum("hep,heq->hpq", q, k) / 4).softmax(-1)
    out = torch.einsum("hpq,heq->hep", weights, v).flatten(0, 1).T @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x), x + out.T.unflatten(-1, (2, 3)), rtol=0, atol=1e-12)


def test_activations_are_channels_last_from_end_to_end_and_weights_contiguous() -> None:
    network, seen = build(), []

    def watch(module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
        last = torch.channels_last
        seen.append(given[0].is_contiguous(memory_format=last) and y.is_contiguous(memory_format=last))
        y.register_hook(lambda g: seen.append(g.stride(1) == 1))

    for module in network.modules():
        if isinstance(module, Conv | GroupNorm | Attention) and module is not network.leave:
            module.register_forward_hook(watch)
    y = network(image(2, 2, 8, 8), levels(2))
    y.square().sum().backward()
    assert len(seen) > 40 and all(seen)
    assert y.is_contiguous() and all(p.is_contiguous() for p in network.parameters())


def test_with_and_without_gradients_it_is_the_same_and_its_input_is_left_alone() -> None:
    network, x = build(), image(2, 2, 8, 8)
    with_gradients, before = network(x, levels(2)), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(network(x, levels(2)), with_gradients, rtol=0, atol=0)
    assert torch.equal(x, before)


def test_bfloat16_computes_beside_float32_masters() -> None:
    network, x = build().float(), image(2, 2, 8, 8).float()
    wide = network(x, levels(2))
    network.compute_dtype = torch.bfloat16
    narrow = network(x, levels(2))
    assert narrow.dtype == torch.float32 and {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < (narrow - wide).abs().max() < 0.05 * wide.abs().max()


def test_a_fresh_network_says_zero_and_is_the_seeds() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(7)
        networks.append(UNet(SMALL))
    assert not networks[0](image(1, 2, 8, 8).float(), torch.zeros(1)).any()
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def test_it_compiles_as_one_graph() -> None:
    network, x = build(replace(SMALL, classes=3)), image(2, 2, 8, 8)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    classes = torch.tensor([0, 2])
    ours, plain = compiled(x, levels(2), classes), network(x, levels(2), classes)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(y.square().sum(), tuple(network.parameters())) for y in (ours, plain)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


def test_the_gradient_is_the_slope() -> None:
    network, x, v, w = build(), image(1, 2, 4, 4), image(1, 2, 4, 4).flip(-1), image(1, 2, 4, 4).flip(-2)
    _, pull = torch.func.vjp(lambda x: network(x, levels(1)), x)
    slope = (network(x + 1e-6 * v, levels(1)) - network(x - 1e-6 * v, levels(1))) / 2e-6
    torch.testing.assert_close((pull(w)[0] * v).sum(), (slope * w).sum(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"in_channels": 0}, "no network"),
        ({"attention": ("both",)}, "no network"),
        ({"groups": 5}, "5 groups"),
        ({"head_width": 24}, "heads of 24"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNet(replace(SMALL, **change))
