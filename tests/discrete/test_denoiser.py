from __future__ import annotations

import numpy as np
import torch

from unveil.discrete.denoiser import Subs
from unveil.discrete.process import LogLinear


def test_golden_subs_and_bound_per_token(golden):
    """MDLM's substitution parameterisation and its NELBO per token; the reference puts -1e6 where we put -inf."""
    arrays, config = golden("mdlm_subs")
    mask = config["mask_id"]
    subs = Subs(mask, (mask,))
    logits = torch.from_numpy(arrays["inputs.logits"]).flatten(0, 1)
    x_t, x0 = (torch.from_numpy(arrays[f"inputs.{name}"]).flatten() for name in ("x_t", "x0"))
    log_probs = subs.log_probs(logits, x_t).numpy()
    expected = arrays["outputs.subs_log_probs"].reshape(log_probs.shape)
    possible = expected > -1e5
    np.testing.assert_array_equal(np.isneginf(log_probs), ~possible)
    # the reference subtracts the normaliser from logits near -1e6, which costs it digits
    np.testing.assert_allclose(log_probs[possible], expected[possible], rtol=0, atol=1e-9)

    t = torch.from_numpy(arrays["inputs.t"]).repeat_interleave(arrays["inputs.x0"].shape[1])
    nelbo = torch.where(x_t == mask, LogLinear().weight(t) * subs.token_loss(logits, x0), 0.0)
    np.testing.assert_allclose(nelbo.numpy(), arrays["outputs.nelbo_per_token"].flatten(), rtol=1e-10, atol=0)
    counted = arrays["inputs.attention_mask"].flatten()
    assert abs((nelbo.numpy() * counted).sum() / counted.sum() - arrays["outputs.loss"]) < 1e-10


def test_only_data_and_the_end_token_have_probability(vocabulary):
    logits = torch.randn(7, vocabulary.size, generator=torch.Generator().manual_seed(0))
    probabilities = Subs.of(vocabulary).log_probs(logits, torch.full((7,), vocabulary.mask)).exp()
    never = [vocabulary.start, vocabulary.mask, vocabulary.prefix, vocabulary.suffix, vocabulary.middle]
    assert (probabilities[:, never] == 0).all()
    assert (probabilities[:, [0, 1, 2, vocabulary.end]] > 0).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(7))


def test_carry_over_is_certain(vocabulary):
    """Unmasked positions, a start token among them, keep their token with log-probability exactly 0."""
    tokens = torch.tensor([vocabulary.start, 0, vocabulary.mask, vocabulary.end])
    logits = torch.randn(4, vocabulary.size, generator=torch.Generator().manual_seed(0))
    log_probs = Subs.of(vocabulary).log_probs(logits, tokens)
    for at in (0, 1, 3):
        assert log_probs[at, tokens[at]] == 0 and log_probs[at].exp().sum() == 1


def test_losses_are_float32_for_bfloat16_logits(vocabulary):
    logits = torch.randn(3, vocabulary.size).bfloat16()
    assert Subs.of(vocabulary).token_loss(logits, torch.tensor([0, 1, 2])).dtype == torch.float32
