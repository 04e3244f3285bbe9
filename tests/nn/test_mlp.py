"""The network of points: its beginning, what it is told, and that no value is left out."""

from __future__ import annotations

import pytest
import torch

from unveil.config import MLPConfig
from unveil.nn.mlp import MLP


def network(**settings: int) -> MLP:
    torch.manual_seed(0)
    made = MLP(MLPConfig(**{"in_channels": 12, "width": 16, "depth": 2, **settings})).double()
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return made


X = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NOISE = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def test_it_begins_at_zero_and_keeps_the_shape() -> None:
    fresh = MLP(MLPConfig(in_channels=12))
    assert not fresh(X.float(), NOISE.float()).any()
    assert network()(X, NOISE).shape == X.shape and network()(X, NOISE).dtype == X.dtype
    assert network(out_channels=24)(X, NOISE).shape == (3, 6, 2, 2)
    assert MLP(MLPConfig(in_channels=2, octaves=3)).enter.weight.shape[1] == 2 * (1 + 2 * 3)
    with pytest.raises(ValueError, match="in_channels"):
        MLP(MLPConfig())


def test_a_block_scales_and_shifts_between_its_matrices() -> None:
    block = network().blocks[0]
    h, condition = torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    silu = torch.nn.functional.silu
    inside = block.enter(silu(h)) * (1 + condition[:, :16]) + condition[:, 16:]  # type: ignore[operator, union-attr]
    assert torch.equal(block(h, condition), h + block.leave(silu(inside)))  # type: ignore[operator, union-attr]


def test_every_value_reaches_every_value_of_its_own_sample_only() -> None:
    net = network()
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, NOISE), X).reshape(3, 12, 3, 12)
    for i in range(3):
        for j in range(3):
            assert (jacobian[i, :, j] != 0).all() if i == j else not jacobian[i, :, j].any()


def test_it_is_told_level_class_and_embedding() -> None:
    net = network(classes=3, embedding=5)
    plain = net(X, NOISE)
    none, zeros = torch.full((3,), 3), torch.zeros(3, 5, dtype=torch.float64)
    assert torch.equal(net(X, NOISE, classes=none, embedding=zeros), plain)
    for changed in (net(X, NOISE + 0.3), net(X, NOISE, classes=none - 1), net(X, NOISE, embedding=zeros + 1)):
        assert ((changed - plain).abs().flatten(1).max(1).values > 1e-4).all()


def test_octaves_tell_near_values_apart() -> None:
    """The highest frequency is (pi / 2) 2^3, so values a whole period, 0.5, apart look the same to it, half a period apart opposite."""
    seen = MLP(MLPConfig(in_channels=1, octaves=4))._seen(torch.tensor([[0.1], [0.35], [0.6]], dtype=torch.float64))
    assert torch.equal(seen[:, 0], torch.tensor([0.1, 0.35, 0.6], dtype=torch.float64)) and seen.shape == (3, 9)
    torch.testing.assert_close(seen[0, -2:], seen[2, -2:])
    torch.testing.assert_close(seen[0, -2:], -seen[1, -2:])
    torch.testing.assert_close(seen[:, 1:-2:2].square() + seen[:, 2:-2:2].square(), torch.ones(3, 3, dtype=torch.float64))


def test_it_learns_what_no_linear_map_can() -> None:
    torch.manual_seed(0)
    net = MLP(MLPConfig(in_channels=2, width=32, depth=2))
    x = torch.rand(256, 2, 1, 1) * 2 - 1
    wanted, optimizer = (x * x.flip(1)), torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        loss = (net(x, torch.zeros(256)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * wanted.var()
