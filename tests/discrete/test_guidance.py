from __future__ import annotations

import numpy as np
import pytest
import torch

from unveil.config import MaskedSamplerConfig
from unveil.discrete.denoiser import Subs
from unveil.discrete.guidance import guided
from unveil.discrete.sampler import MaskedSampler
from unveil.errors import UserError
from unveil.family import Request
from unveil.nn.packed import Packed


def sampler(**settings):
    return MaskedSampler(Subs(5, (3, 5, 6, 7, 8)), 4, MaskedSamplerConfig(**settings), keep=(3,))


def run(ours, model, requests):
    state, last = ours.begin(requests), {}
    while state.live:
        last |= {row.request: row for row in ours.step(model, state).rows}
    return [last[i] for i in range(len(requests))]


def test_no_guidance_is_no_second_reading():
    c, u = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(guided(c, u, 0.0), c)
    torch.testing.assert_close(guided(c, u, -1.0), u)
    torch.testing.assert_close(guided(c, u, 1.0), 2 * c - u)


@pytest.mark.parametrize("negative", [None, np.array([3, 2])])
def test_a_step_by_hand(network, negative):
    """All tokens in one step: the two readings, one after the other."""
    prompt = np.array([3, 0, 1, 1])
    (row,) = run(sampler(steps=1, temperature=0.0, guidance=1.5), network, [Request(prompt, 3, 0, negative)])
    other = np.array([3, 5, 5, 5]) if negative is None else negative
    logits = [network.head(network(Packed.of([torch.from_numpy(np.concatenate([p, [5, 5, 5]]))])))[-3:] for p in (prompt, other)]
    expected = Subs(5, (3, 5, 6, 7, 8)).restrict(logits[1] + 2.5 * (logits[0] - logits[1]))
    np.testing.assert_array_equal(row.tokens[4:], expected.argmax(-1).numpy())
    np.testing.assert_allclose(row.confidence[4:], expected.softmax(-1).max(-1).values.detach().numpy(), rtol=1e-6)
    assert row.evaluations == 2 and row.computed == 7 + 3 + len(other)


def test_guided_rows_are_the_same_in_any_batch_and_guidance_changes_them(network):
    requests = [
        Request(np.array([3, 0, 1]), 4, 1),
        Request(np.array([3, 5, 2, 5]), 0, 2),
        Request(np.array([3]), 5, 3, np.array([3, 1, 1, 1])),
    ]
    ours = sampler(guidance=4.0, order="entropy")
    together = run(ours, network, requests)
    for i, request in enumerate(requests):
        np.testing.assert_array_equal(run(ours, network, [request])[0].tokens, together[i].tokens)
    plain = run(sampler(order="entropy"), network, requests)
    assert any((a.tokens != b.tokens).any() for a, b in zip(plain, together, strict=True))


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"sampler\.negative: got 'x': given without guidance"):
        sampler(negative="x")
    with pytest.raises(UserError, match=r"sampler\.cache: got 'dual': guidance reads two"):
        sampler(guidance=1.0, cache="dual", window=4)
    with pytest.raises(UserError, match=r"sampler\.negative: given with an infill"):
        sampler(guidance=1.0).begin([Request(np.array([3, 5, 0]), 0, 0, np.array([3]))])
