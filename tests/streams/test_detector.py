from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.streams.small import KINDS, clips, features, make
from unveil.streams.detector import scored


def test_ignored_classes_stand_outside_the_softmax() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    found = scored(logits, (1, 3))
    assert found.dtype == torch.float32 and found[..., [1, 3]].isinf().all()
    torch.testing.assert_close(found.softmax(-1)[..., [0, 2]], logits[..., [0, 2]].float().softmax(-1))
    assert torch.equal(scored(logits, ()), logits.float())


@pytest.mark.parametrize("kind", ["oadtr", "causal"])
def test_flops_are_those_that_run(kind: str) -> None:
    """Three times a forward pass; attention of the trunk is an operator that the counter does not see, that of few queries is not told."""
    network = make(kind, width=64, decoder_heads=2)
    batch = clips(features(8), features(8))
    with FlopCounterMode(display=False) as counter:
        network(batch)
    own = network.flops_per_token(8) - 12 * network.config.depth * 64 * 8
    assert own * batch.size == pytest.approx(3 * counter.get_total_flops(), rel=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_future_reaches_the_present_only_where_it_is_joined(kind: str) -> None:
    batch = clips(features(4))
    for joined in (True, False):
        network = make(kind, joined=joined)
        network(batch).present_NC.sum().backward()
        assert (network.decoder.queries.grad is not None) == joined
        assert network.future.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_weights_begin_uniform_by_fan_in(kind: str) -> None:
    torch.manual_seed(0)
    network = KINDS[kind](width=64)
    bound = network.present.weight.shape[1] ** -0.5
    assert 0.9 * bound < float(network.present.weight.detach().abs().max()) <= bound and network.present.bias.any()
    assert not network.decoder.queries.any() and float(network.decoder.positions.detach().std()) == pytest.approx(1, abs=0.15)
