"""The diffusion transformer beside diffusers' (``tests/interop`` compares the numbers): sizes, positions, conditions, dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nn.twins import dense_attention
from unveil.config import DiTConfig
from unveil.nn.dit import Block, DiT, positions
from unveil.nn.layout import Bidirectional

SMALL = DiTConfig(in_channels=3, size=8, patch=2, width=32, depth=2, heads=2, classes=4)


def build(config: DiTConfig = SMALL) -> DiT:
    torch.manual_seed(0)
    network = DiT(config)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)
    return network.double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def levels(count: int) -> Tensor:
    return torch.linspace(-1, 1, count, dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2)])
def test_any_resolution_that_the_patches_tile(size: tuple[int, int]) -> None:
    y = build(replace(SMALL, out_channels=6))(image(2, 3, *size), levels(2))
    assert y.shape == (2, 6, *size) and y.isfinite().all()


def test_a_size_that_they_do_not_is_refused() -> None:
    with pytest.raises(ValueError, match="patches of 2"):
        build()(image(1, 3, 7, 8), levels(1))


def test_a_patch_comes_back_where_it_was() -> None:
    """With all blocks closed the network maps each patch alone, so a change of one pixel stays in its patch."""
    network = build()
    for block in network.blocks:
        nn.init.zeros_(block.tell.weight)
        nn.init.zeros_(block.tell.bias)
    x = image(1, 3, 6, 8)
    moved = x.clone()
    moved[0, 1, 3, 4] += 1
    rows, columns = (network(moved, levels(1)) - network(x, levels(1))).abs().sum((0, 1)).nonzero().unbind(1)
    assert set(rows.tolist()) == {2, 3} and set(columns.tolist()) == {4, 5}


def test_positions_of_another_size_cover_the_same_range() -> None:
    base, fine = positions(4, 4, 8, 4), positions(8, 8, 8, 4)
    at = fine.unflatten(0, (8, 8))[::2, ::2].flatten(0, 1)
    torch.testing.assert_close(at, base, rtol=0, atol=0)
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    torch.testing.assert_close(base[:, 0], column.flatten().sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(base[:, 4], row.flatten().sin(), rtol=0, atol=1e-6)


def test_a_block_is_its_equations() -> None:
    block = Block(SMALL).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)
    x, told, cu = image(2, 5, 32), image(2, 32), torch.tensor([0, 5, 10], dtype=torch.int32)

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)

    shift1, scale1, gate1, shift2, scale2, gate2 = (part[:, None] for part in block.tell(told).chunk(6, 1))
    q, k, v = block.qkv(norm(x) * (1 + scale1) + shift1).flatten(0, 1).unflatten(-1, (3, 2, 16)).unbind(1)
    attended = dense_attention(q, k, v, [5, 5], Bidirectional()).reshape(2, 5, 32)
    y = x + gate1 * block.out(attended)
    hidden = nn.functional.gelu(block.up(norm(y) * (1 + scale2) + shift2), approximate="tanh")
    torch.testing.assert_close(block(x, told, cu), y + gate2 * block.down(hidden), rtol=0, atol=1e-12)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network, x, c = build(), image(3, 3, 8, 8), levels(3)
    alone = torch.cat([network(x[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, c), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedders", ["shared", "per-block"])
def test_every_weight_moves_the_output(embedders: Any) -> None:
    network = build(replace(SMALL, embedding=4, augmentation=5, embedders=embedders))
    told = {"classes": torch.tensor([0, 1]), "embedding": image(2, 4), "augmentation": image(2, 5)}
    network(image(2, 3, 8, 8), levels(2), **told).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert len(network.condition) == (2 if embedders == "per-block" else 1)


def test_no_class_is_the_null_class() -> None:
    network, x = build(), image(2, 3, 8, 8)
    assert torch.equal(network(x, levels(2)), network(x, levels(2), torch.tensor([4, 4])))
    assert not torch.equal(network(x, levels(2)), network(x, levels(2), torch.tensor([3, 4])))


def test_bfloat16_computes_beside_float32_masters() -> None:
    network, x = build().float(), image(2, 3, 8, 8).float()
    wide = network(x, levels(2))
    network.compute_dtype = torch.bfloat16
    narrow = network(x, levels(2))
    assert narrow.dtype == torch.float32 and {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < (narrow - wide).abs().max() < 0.05 * wide.abs().max()


def test_a_fresh_network_says_zero_and_its_blocks_pass_through() -> None:
    torch.manual_seed(0)
    network = DiT(SMALL)
    assert not network(image(1, 3, 8, 8).float(), torch.zeros(1)).any()
    x = image(1, 4, 32).float()
    assert torch.equal(network.blocks[0](x, torch.ones(1, 32), torch.tensor([0, 4], dtype=torch.int32)), x)


def test_it_compiles_as_one_graph() -> None:
    network, x = build(), image(2, 3, 8, 8)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, levels(2)), network(x, levels(2)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("change", [{"in_channels": 0}, {"heads": 3}, {"width": 30}, {"size": 9}])
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no network"):
        DiT(replace(SMALL, **change))
