"""Layers for queries and what they ask, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unveil.nn.attention import cross_attention
from unveil.nn.encoder_decoder import DecoderLayer, EncoderLayer
from unveil.nn.layout import Bidirectional
from unveil.nn.norm import LayerNorm

LENGTHS = [3, 3, 1, 7, 3]


def test_cross_attention_equals_one_sequence_after_another() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*shape, 2, 4, generator=generator, dtype=torch.float64) for shape in ((5, 6), (17,), (17,)))
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    found = cross_attention(q, k, v, cu_seqlens)
    for i, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False)):
        weights = torch.einsum("qhe,khe->hqk", q[i], k[start:end]).div(2).softmax(-1)
        torch.testing.assert_close(found[i], torch.einsum("hqk,khe->qhe", weights, v[start:end]), rtol=0, atol=1e-12)


def test_a_decoder_layer_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(16, 2, 24, activation="gelu", batch_first=True, dtype=torch.float64).eval()
    ours = DecoderLayer(16, 2, 24, 0.1).double().eval()
    names = {"attention": "self_attn", "cross": "multihead_attn"}
    state = {f"norms.{i}.{kind}": getattr(theirs, f"norm{i + 1}").state_dict()[kind] for i in range(3) for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        whole = {mine: getattr(theirs, name).state_dict()[f"in_proj_{kind}"] for mine, name in names.items()}
        state |= {f"{mine}.out.{kind}": getattr(theirs, name).out_proj.state_dict()[kind] for mine, name in names.items()}
        state |= {f"attention.qkv.{kind}": whole["attention"], f"cross.query.{kind}": whole["cross"][:16]}
        state |= {f"cross.key_value.{kind}": whole["cross"][16:]}
        state |= {f"feedforward.{a}.{kind}": getattr(theirs, b).state_dict()[kind] for a, b in (("up", "linear1"), ("down", "linear2"))}
    ours.load_state_dict(state)
    x, memory = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 7, 16, dtype=torch.float64)
    found = ours(x.flatten(0, 1), memory.flatten(0, 1), torch.tensor([0, 7, 14, 21], dtype=torch.int32), Bidirectional())
    torch.testing.assert_close(found.unflatten(0, (3, 5)), theirs(x, memory), rtol=0, atol=1e-12)


def test_layer_norm_with_a_bias_is_torchs() -> None:
    theirs, ours = nn.LayerNorm(8, dtype=torch.float64), LayerNorm(8, bias=True).double()
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    assert ours.bfloat16()(x.bfloat16()).dtype == torch.bfloat16 and LayerNorm(8).bias is None


def test_two_dropouts_in_a_row_are_one() -> None:
    assert EncoderLayer(8, 2, 8, 0.1).attention_dropout.p == pytest.approx(1 - 0.9 * 0.9)
