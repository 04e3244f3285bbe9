"""The causal network against a dense mask, and how far back it sees."""

from __future__ import annotations

import pytest
import torch

from tests.nn.twins import dense_attention
from tests.streams.small import STEPS, clips, features, make
from unveil.config_streams import CausalConfig
from unveil.streams.causal import window


@torch.no_grad()
def test_equals_a_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    network, lengths = make("causal"), [6, 6, 2, 13]
    batch = clips(*(features(n) for n in lengths))
    found = network(batch)
    monkeypatch.setattr("unveil.nn.self_attention.attention", lambda q, k, v, cu, most, layout: dense_attention(q, k, v, lengths, layout))
    expected = network(batch)
    torch.testing.assert_close(found.present_NC, expected.present_NC, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.future_NKC, expected.future_NKC, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("switches", "seen"), [({}, 7), ({"depth": 1, "window": 3}, 7), ({"horizon": 0}, 7), ({"depth": 6}, 8)], ids=str)
def test_a_score_depends_on_no_more_than_its_steps(switches: dict[str, int], seen: int) -> None:
    """Gradients reach back exactly (layers + the decoder) x window + 1 chunks; a present that is not joined asks no decoder."""
    network = make("causal", **switches)
    x = features(20).requires_grad_()
    logits = network(clips(x))
    (whole,) = torch.autograd.grad(logits.present_NC.sum() + logits.future_NKC.sum(), x, retain_graph=True)
    reached = whole.abs().sum(1) > 0
    assert reached.tolist() == [False] * (20 - seen) + [True] * seen and seen <= STEPS
    (present,) = torch.autograd.grad(logits.present_NC.sum(), x)
    config = network.config
    assert int((present.abs().sum(1) > 0).sum()) == config.depth * window(config) + 1


def test_the_window_is_what_the_steps_leave() -> None:
    assert window(CausalConfig()) == 15 and window(CausalConfig(horizon=0)) == 21 and window(CausalConfig(window=4)) == 4
    for wrong in (CausalConfig(steps=4), CausalConfig(window=16)):
        with pytest.raises(ValueError, match="do not fit"):
            window(wrong)
    with pytest.raises(ValueError, match="even width"):
        make("causal", heads=16)


def test_angles_stay_sharp_after_a_year() -> None:
    """Scores hang on differences of positions; angles formed in float32 would have lost them all."""
    network = make("causal", torch.float32)
    far = 4 * 3600 * 24 * 365
    near_angles, far_angles = (network.turned(torch.tensor([p, p + 3]), torch.float32) for p in (0, far))
    for turned in (near_angles, far_angles):
        cosine = (turned.cos[0, 0, 0] * turned.cos[1, 0, 0] + turned.sin[0, 0, 1] * turned.sin[1, 0, 1])[0]
        assert abs(float(cosine) - float(torch.tensor(3.0).cos())) < 1e-6


def test_windows_of_a_batch_do_not_meet() -> None:
    network = make("causal", joined=True)
    batch = clips(*(features(n) for n in (8, 3, 3, 1)))
    whole = network(batch)
    for i, part in enumerate(batch.split()):
        torch.testing.assert_close(network(part).present_NC[0], whole.present_NC[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(network(part).future_NKC[0], whole.future_NKC[i], rtol=0, atol=1e-12)
