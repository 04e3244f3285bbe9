"""Both copies in one pass against every block alone behind the clean blocks before it."""

from __future__ import annotations

import pytest
import torch

from unveil.config import TransformerConfig
from unveil.nn.block_diffusion import two_stream
from unveil.nn.layout import BlockCausal, Causal
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer


def _network(block: int, **switches: object) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=32, depth=2, heads=4, init="normal", init_std=0.3, **switches)  # type: ignore[arg-type]
    network = Transformer(config, 23, BlockCausal(block)).double()
    network.compute_dtype = torch.float64
    return network


@pytest.mark.parametrize("block", [1, 4, 50])
@pytest.mark.parametrize("switches", [{}, {"kv_heads": 2, "qk_norm": True}, {"qkv_bias": True}, {"shift": True}], ids=str)
def test_every_block_reads_as_it_would_alone(block: int, switches: dict[str, object]) -> None:
    network = _network(block, **switches)
    clean, noisy = (Packed.of([torch.randint(0, 23, (n,)) for n in (9, 9, 6, 1)]) for _ in range(2))
    hidden_TD = two_stream(network, noisy, clean.tokens_T, block)
    alone = []
    for x0, xt in zip(clean.split(), noisy.split(), strict=True):
        for start in range(0, len(x0), block):
            alone.append(network(Packed.of([torch.cat((x0[:start], xt[start : start + block]))]))[start:])
    expected_TD = torch.cat(alone)
    torch.testing.assert_close(hidden_TD, expected_TD, rtol=0, atol=1e-10)
    weight = torch.randn_like(hidden_TD)
    parameters = [p for n, p in network.named_parameters() if n != "head.weight"]
    gradients = [torch.autograd.grad((h * weight).sum(), parameters) for h in (hidden_TD, expected_TD)]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-8)


def test_blocks_of_one_with_shifted_states_are_the_causal_network() -> None:
    """Whatever the noisy copy holds: the clean token before each one predicts it, and the layout is the triangle."""
    network = _network(1, shift=True)
    clean, noisy = (Packed.of([torch.randint(0, 23, (n,)) for n in (9, 6, 1)]) for _ in range(2))
    causal_TD = network(clean, layout=Causal())
    first_T = clean.positions_T == 0
    torch.testing.assert_close(two_stream(network, noisy, clean.tokens_T, 1)[~first_T], causal_TD[~first_T], rtol=0, atol=1e-12)


def test_unequal_halves_are_refused() -> None:
    noisy = Packed.of([torch.tensor([1, 2])])
    with pytest.raises(ValueError, match="2 noisy and 1 clean"):
        two_stream(_network(2), noisy, torch.tensor([1]), 2)
