"""OadTR against a plain twin, written from the paper's description with torch's own modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.streams.small import clips, features, make
from unveil.config_streams import OadTRConfig
from unveil.data.clips import Clips
from unveil.streams.oadtr import PAPER, RELEASED, OadTR


class PlainEncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainDecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.cross = (nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.conv1, self.conv2 = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, q: Tensor, memory: Tensor, causal: bool) -> Tensor:
        hidden = torch.triu(torch.ones(q.shape[1], q.shape[1], dtype=torch.bool), 1) if causal else None
        q = self.norm1(q + self.attention(q, q, q, attn_mask=hidden, need_weights=False)[0])
        q = self.norm2(q + self.cross(q, memory, memory, need_weights=False)[0])
        return self.norm3(q + self.conv2(F.gelu(self.conv1(q.transpose(1, 2)))).transpose(1, 2))


class PlainOadTR(nn.Module):
    """One history of full length after another: no batch of ragged windows, no folding."""

    def __init__(self, c: OadTRConfig) -> None:
        super().__init__()
        width = c.width
        self.c = c
        self.project = nn.Linear(c.features, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Embedding(c.steps + 1, width)
        self.encoder = nn.ModuleList(PlainEncoderLayer(width, c.heads) for _ in range(c.depth))
        self.encoder_norm = nn.LayerNorm(width)
        self.queries, self.query_position = nn.Parameter(torch.zeros(1, c.horizon, width)), nn.Embedding(c.horizon, width)
        self.decoder = nn.ModuleList(PlainDecoderLayer(width, c.decoder_heads) for _ in range(c.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width)
        self.future, self.present = nn.Linear(width, c.classes), nn.Linear(2 * width, c.classes)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((self.project(history), self.token), dim=1) + self.position.weight[self.c.steps - history.shape[1] :]
        for layer in self.encoder:
            x = layer(x)
        x = self.encoder_norm(x)
        q = self.queries + (self.query_position.weight if self.c.query_positions == "added" else 0)
        for layer in self.decoder:
            q = layer(q, x, self.c.decoder_causal)
        q = self.decoder_norm(q)
        return self.present(torch.cat((x[:, -1], q.mean(1)), dim=1)), self.future(q)


def copied(twin: PlainOadTR) -> dict[str, Tensor]:
    """Its weights under our names, layer by layer."""
    theirs, ours = twin.state_dict(), {}
    plain = {"enter": "project", "norm": "encoder_norm", "decoder.norm": "decoder_norm", "present": "present", "future": "future"}
    renamed = [(f"{mine}.{kind}", f"{name}.{kind}") for mine, name in plain.items() for kind in ("weight", "bias")]
    inner = {
        "attention_norm": "norm1",
        "feedforward_norm": "norm2",
        "attention.out": "out",
        "feedforward.up": "up",
        "feedforward.down": "down",
    }
    for i in range(twin.c.depth):
        renamed += [
            (f"blocks.{i}.{mine}.{kind}", f"encoder.{i}.{name}.{kind}") for mine, name in inner.items() for kind in ("weight", "bias")
        ]
        renamed.append((f"blocks.{i}.attention.qkv.weight", f"encoder.{i}.qkv.weight"))
    for i in range(twin.c.decoder_depth):
        mine, name = f"decoder.layers.{i}", f"decoder.{i}"
        for kind in ("weight", "bias"):
            renamed += [(f"{mine}.norms.{j}.{kind}", f"{name}.norm{j + 1}.{kind}") for j in range(3)]
            renamed += [(f"{mine}.{a}.out.{kind}", f"{name}.{a}.out_proj.{kind}") for a in ("attention", "cross")]
            renamed += [(f"{mine}.feedforward.{a}.{kind}", f"{name}.{b}.{kind}") for a, b in (("up", "conv1"), ("down", "conv2"))]
            renamed.append((f"{mine}.attention.qkv.{kind}", f"{name}.attention.in_proj_{kind}"))
            query, key, value = theirs[f"{name}.cross.in_proj_{kind}"].chunk(3)
            ours |= {f"{mine}.cross.query.{kind}": query, f"{mine}.cross.key_value.{kind}": torch.cat((key, value))}
    ours |= {mine: theirs[name].squeeze(-1) if "conv" in name else theirs[name] for mine, name in renamed}
    ours |= {"token": theirs["token"][0], "positions": theirs["position.weight"]}
    return ours | {"decoder.queries": theirs["queries"][0], "decoder.positions": theirs["query_position.weight"]}


@pytest.mark.parametrize("variant", [PAPER, RELEASED], ids=["paper", "released"])
@torch.no_grad()
def test_equals_the_plain_twin(variant: OadTRConfig) -> None:
    config = replace(variant, features=12, classes=6, width=32, steps=9, depth=3, decoder_depth=5)
    torch.manual_seed(0)
    twin = PlainOadTR(config)
    for p in twin.parameters():
        p += 0.2 * torch.randn(p.shape)
    network = OadTR(config).eval()
    network.load_state_dict(copied(twin))
    histories = [torch.randn(length, 12) for length in (9, 9, 1, 4, 9)]
    logits = network(Clips.of(histories, torch.zeros(5).long(), torch.zeros(5, 8).long()))
    for i, history in enumerate(histories):
        present, future = twin(history[None])
        torch.testing.assert_close(logits.present_NC[i], present[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits.future_NKC[i], future[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", [PAPER, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize(("features", "parameters"), [(3072, 74_709_036), (4096, 75_757_612)])
def test_parameters(variant: OadTRConfig, features: int, parameters: int) -> None:
    """The count of the authors' committed log, and the literature's 75.8M."""
    with torch.device("meta"):
        network = OadTR(replace(variant, features=features, classes=22))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_what_the_released_code_never_reads_is_never_trained() -> None:
    for kind, trained in (("added", True), ("unread", False)):
        network = make("oadtr", query_positions=kind)
        assert network.decoder is not None
        sum(values.square().sum() for values in network(clips(features(4)))).backward()
        assert (network.decoder.positions.grad is not None) == trained


def test_a_query_sees_the_nearer_ones_only_where_it_is_causal() -> None:
    for causal in (True, False):
        network, batch = make("oadtr", decoder_causal=causal), clips(features(4))
        before = network(batch).future_NKC
        with torch.no_grad():
            network.decoder.queries[2] += 1.0
        moved = (network(batch).future_NKC - before).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == [not causal, not causal, True]


@pytest.mark.parametrize("switches", [{}, {"task_token": False}, {"horizon": 0}, {"joined": False}], ids=str)
def test_windows_of_a_batch_do_not_meet(switches: dict[str, Any]) -> None:
    network = make("oadtr", **switches)
    batch = clips(*(features(n) for n in (8, 3, 3, 1)))
    whole = network(batch)
    for i, part in enumerate(batch.split()):
        alone = network(part)
        torch.testing.assert_close(alone.present_NC[0], whole.present_NC[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.future_NKC[0], whole.future_NKC[i], rtol=0, atol=1e-12)
    assert whole.future_NKC.shape == (4, switches.get("horizon", 3), 4)


def test_the_newest_chunk_has_the_last_position_however_short_the_history() -> None:
    network = make("oadtr")
    before = network(clips(features(2))).present_NC
    with torch.no_grad():
        network.positions[:6] += 1.0
    assert torch.equal(network(clips(features(2))).present_NC, before)
    assert not torch.equal(network(clips(features(3))).present_NC, network(clips(features(2))).present_NC)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="9 chunks"):
        make("oadtr")(clips(features(9)))
    with pytest.raises(ValueError, match="width 4"):
        make("oadtr")(clips(features(2)[:, :4]))
    for wrong in ({"heads": 3}, {"decoder_heads": 3}, {"features": 0}, {"classes": 1}):
        with pytest.raises(ValueError):
            make("oadtr", **wrong)


def test_encoder_layers_compile() -> None:
    network, batch = make("oadtr", depth=1), clips(features(8), features(3))
    before = network(batch).present_NC
    network.compile_blocks(backend="eager")
    torch.testing.assert_close(network(batch).present_NC, before, rtol=0, atol=1e-12)
