"""The folded decoder against the decoder itself."""

from __future__ import annotations

import pytest
import torch

from tests.streams.small import make
from unveil.streams.detector import Memory
from unveil.streams.folded import Absorbed, FoldedDecoder


@pytest.mark.parametrize("width", [16, 18], ids=["in slices", "whole"])
@torch.no_grad()
def test_keys_and_values_need_not_be_formed(width: int) -> None:
    decoder = make("recurrent", width=width).decoder
    memory_BMD = torch.randn(3, 7, width, dtype=torch.float64)
    windows = torch.arange(0, 22, 7, dtype=torch.int32)
    expected = decoder(Memory(memory_BMD[:, -1], memory_BMD.flatten(0, 1), windows))
    folded = FoldedDecoder(decoder, torch.float64)
    torch.testing.assert_close(folded(3, Absorbed(folded)(memory_BMD)), expected, rtol=0, atol=1e-12)
    order = torch.randperm(7)
    torch.testing.assert_close(folded(3, Absorbed(folded)(memory_BMD[:, order])), expected, rtol=0, atol=1e-12)


def test_weights_are_shared_and_the_decoder_is_as_it_was() -> None:
    decoder = make("oadtr").decoder
    before = {name: p.data_ptr() for name, p in decoder.named_parameters()}
    folded = FoldedDecoder(decoder, torch.float64)
    assert {name: p.data_ptr() for name, p in decoder.named_parameters()} == before
    assert {p.data_ptr() for p in folded.decoder.parameters()} == set(before.values())
    assert type(decoder.layers[0].cross.query).__name__ == "Affine"
