"""The recurrent network against the equations of the gated recurrent unit."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.streams.small import clips, features, make


@torch.no_grad()
def test_equals_the_equations() -> None:
    """Cho et al. 2014, with the reset gate behind the matrix, as cuDNN and torch have it."""
    network = make("recurrent", depth=1)
    w_ih, w_hh, b_ih, b_hh = network.gru.all_weights[0]
    windows = [features(4), features(7), features(1)]
    logits = network(clips(*windows))
    for i, window in enumerate(windows):
        h = torch.zeros(16, dtype=torch.float64)
        for x in F.linear(window, network.enter.weight, network.enter.bias):
            x = F.relu(F.layer_norm(x, (16,), network.norm.weight, network.norm.bias))
            (r, z, n), (hr, hz, hn) = (w_ih @ x + b_ih).chunk(3), (w_hh @ h + b_hh).chunk(3)
            r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + r * hn) + z * h
        expected = network.present.weight @ F.relu(h) + network.present.bias
        torch.testing.assert_close(logits.present_NC[i], expected, rtol=0, atol=1e-12)


def test_masters_stay_wide_where_activations_are_narrow() -> None:
    network = make("recurrent", torch.float32)
    network.compute_dtype = torch.bfloat16
    logits = network(clips(features(4, dtype=torch.float32)))
    assert logits.present_NC.dtype == torch.bfloat16 and network.gru.weight_hh_l0.dtype == torch.float32
