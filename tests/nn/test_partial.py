"""Parts of sequences against whole ones: what was read before comes out of the store."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from unveil.config import LatentConfig, TransformerConfig
from unveil.nn import partial
from unveil.nn.layout import Bidirectional, BlockCausal
from unveil.nn.packed import Packed
from unveil.nn.partial import Span, new_store, read
from unveil.nn.transformer import Transformer

BLOCK = 4


def network(layout: BlockCausal | Bidirectional, **settings: object) -> Transformer:
    torch.manual_seed(2)
    sizes = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 32, "init": "normal", "init_std": 0.4, "qk_norm": True}
    model = Transformer(TransformerConfig(**sizes | settings), 11, layout).double()  # type: ignore[arg-type]
    model.compute_dtype = torch.float64
    return model.eval()


TEXTS = [torch.randint(0, 11, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 12, 17, 24)]
PASSES = (
    [(0, 0, 8), (2, 0, 12), (3, 0, 4)],  # each alone
    [(0, 8, 12), (1, 0, 4), (2, 12, 16), (3, 4, 12)],  # one that sees itself alone among others, of two lengths
    [(3, 12, 16), (0, 12, 20)],  # not in the order of their slots, with holes between them
    [(0, 12, 16), (1, 4, 8), (2, 8, 12), (3, 8, 12)],  # all alike
    [(1, 8, 12), (2, 16, 17)],  # the last block of a text is short
)
"""(slot, start, end) of finished blocks, in an order in which each finds what precedes it."""


@torch.no_grad()
def check(model: Transformer, passes: Sequence[Sequence[tuple[int, int, int]]] = PASSES) -> None:
    whole = [model(Packed.of([text])) for text in TEXTS]
    store = new_store(model, 4, 24)
    places = [x.data_ptr() for x in (*store.keys, *store.values)]
    for parts in passes:
        spans = [Span(slot, start, end - start, end) for slot, start, end in parts]
        hidden_TD = read(model, spans, torch.cat([TEXTS[slot][start:end] for slot, start, end in parts]), store)
        expected_TD = torch.cat([whole[slot][start:end] for slot, start, end in parts])
        torch.testing.assert_close(hidden_TD, expected_TD, rtol=0, atol=1e-12)
    assert places == [x.data_ptr() for x in (*store.keys, *store.values)]


LATENT = {"latent": LatentConfig(width=8, rotary=4, plain=4, value=4), "kv_heads": 0, "qk_norm": False}


@pytest.mark.parametrize("settings", [{}, LATENT], ids=["plain", "latent"])
def test_blocks_out_of_a_store_are_those_of_the_whole_text(settings: dict[str, object]) -> None:
    check(network(BlockCausal(BLOCK), **settings))


@pytest.mark.slow
def test_a_compiled_pass_is_the_same() -> None:
    model = network(BlockCausal(BLOCK), depth=1, qk_norm=False)
    model.compile_decoding(backend="aot_eager")
    check(model, [[(0, 0, 8), (1, 0, 8)], [(0, 8, 16), (1, 8, 12)]])


@torch.no_grad()
def test_only_what_is_read_is_written() -> None:
    model = network(Bidirectional())
    store = new_store(model, 2, 12)
    read(model, [Span(0, 0, 12, 12), Span(1, 0, 12, 12)], torch.cat([TEXTS[1], TEXTS[1].flip(0)]), store)
    before = [x.clone() for x in (*store.keys, *store.values)]
    read(model, [Span(1, 5, 3, 12)], torch.tensor([1, 2, 3]), store)
    for old, new in zip(before, (*store.keys, *store.values), strict=True):
        changed = (old != new).any(-1).any(1)
        assert changed[1, 5:8].all() and changed.sum() == 3


def test_equal_spans_share_one_plan_without_a_mask() -> None:
    model = network(BlockCausal(BLOCK))
    plan = partial._plan((Span(0, 8, 4, 12), Span(1, 8, 4, 12)), model.layout, torch.float64, torch.device("cpu"))
    assert plan.mask is None and plan.grid_SN is None and plan.back_T is None
    ragged = partial._plan((Span(0, 8, 4, 12), Span(1, 4, 8, 12)), model.layout, torch.float64, torch.device("cpu"))
    assert ragged.mask is not None and ragged.mask.shape == (2, 1, 8, 12)
