"""The loss against sums written out, and its denominators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.streams.small import KINDS, clips, features, make
from unveil.data.clips import Clips
from unveil.streams.objective import StreamObjective, curve

OBJECTIVE = StreamObjective(3, 0.5, (3,))


def batch() -> Clips:
    return clips(*(features(n) for n in (8, 3, 3, 1, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_sums_over_what_counts(kind: str) -> None:
    """Soft one-hot cross-entropy over the classes that are not ignored, as the released code writes it."""
    network, given = make(kind), batch()
    terms, targets, logits = OBJECTIVE.loss(network, given), OBJECTIVE.targets(given), network(given)
    counts = [c not in (-1, 3) for c in given.present_N.tolist()]
    logp = logits.present_NC[:, :3].log_softmax(-1)
    present = -sum(logp[i, given.present_N[i]] for i in range(5) if counts[i])
    torch.testing.assert_close(terms["present"].sum, present)
    logp = logits.future_NKC[..., :3].log_softmax(-1)
    total, each = 0.0, [0.0] * 3
    numbers = [0] * 3
    for i, row in enumerate(given.future_NK.tolist()):
        for k, c in enumerate(row):
            if c not in (-1, 3):
                total, each[k], numbers[k] = total - logp[i, k, c], each[k] - float(logp[i, k, c].detach()), numbers[k] + 1
    torch.testing.assert_close(terms["future"].sum, total)
    assert (terms["present"].weight, terms["future"].weight) == (1.0, 0.5)
    assert targets == {"present": 3.0, "future": float(sum(numbers)), **{f"future {k + 1}": float(n) for k, n in enumerate(numbers)}}
    for k in range(3):
        measured = terms[f"future {k + 1}"]
        assert measured.weight == 0 and not measured.sum.requires_grad and float(measured.sum) == pytest.approx(each[k])


def test_ignored_classes_are_never_trained() -> None:
    network = make("oadtr")
    terms = OBJECTIVE.loss(network, batch())
    (terms["present"].sum + terms["future"].sum).backward()
    for head in (network.present, network.future):
        assert not head.weight.grad[3].any() and head.weight.grad[:3].any(1).all()


def test_a_batch_without_classes_costs_nothing() -> None:
    network, given = make("causal"), batch()
    empty = Clips.of([features(4)], torch.tensor([3]), torch.full((1, 3), -1))
    assert all(value == 0 for value in OBJECTIVE.targets(empty).values())
    assert all(float(term.sum.detach()) == 0 for term in OBJECTIVE.loss(network, empty).values())
    assert OBJECTIVE.log_likelihood(network(given), given)[2] == 0  # its present is ignored


def test_without_a_decoder_only_the_present_is_trained() -> None:
    objective = StreamObjective(0, 0.5, (3,))
    assert set(objective.loss(make("oadtr", horizon=0), batch())) == set(objective.targets(batch())) == {"present"}


def test_too_few_chunks_ahead_are_refused() -> None:
    with pytest.raises(ValueError, match="3 chunks ahead in the batch, the network tells 8"):
        StreamObjective(8, 0.5).targets(batch())


def test_the_curve_of_a_row() -> None:
    row: dict[str, Any] = {"train/present": 1.0, "train/future 2": 3.0}
    found = curve(row, 2)
    assert (found[0], found[2]) == (1.0, 3.0) and math.isnan(found[1])
