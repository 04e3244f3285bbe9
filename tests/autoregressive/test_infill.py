from __future__ import annotations

import numpy as np
import pytest

from unveil.autoregressive import infill
from unveil.text.vocabulary import Vocabulary

WORDS = Vocabulary(size=206, start=200, end=201, mask=202, prefix=203, suffix=204, middle=205)


def cases(count: int) -> list[tuple[np.ndarray, np.random.Generator]]:
    """Sequences of random length, with and without an end, each with the generator that rearranges it."""
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        document = rng.integers(0, 200, size=int(rng.integers(0, 60)))
        made.append((np.concatenate([[200], document, [201] * int(rng.integers(0, 2))]).astype(np.int64), rng))
    return made


def test_nothing_is_lost_but_the_tail_that_pays_for_the_sentinels() -> None:
    changed = 0
    for tokens, rng in cases(500):
        out = infill.rearrange(tokens, WORDS, 1.0, rng)
        assert len(out) == len(tokens)
        if len(tokens) < infill.SHORTEST:
            assert out is tokens
            continue
        changed += 1
        assert out[0] == WORDS.start and out[-1] == WORDS.end and out.dtype == np.int64
        source = tokens[tokens < 200]
        kept = len(tokens) - 5
        assert len(source) - kept == (3 if tokens[-1] == WORDS.end else 4)
        assert sorted(out[out < 200]) == sorted(source[:kept])
        prefix, middle, suffix = infill.parts(out, WORDS)
        assert np.concatenate([prefix, middle, suffix]).tolist() == source[:kept].tolist()
    assert changed > 250


def test_the_split_points_are_uniform_over_the_gaps_and_may_be_empty() -> None:
    tokens = np.concatenate([[200], np.arange(18), [201]]).astype(np.int64)  # 15 tokens kept: 16 gaps
    pairs = np.zeros((16, 16))
    for seed in range(4000):
        prefix, middle, _ = infill.parts(infill.rearrange(tokens, WORDS, 1.0, np.random.default_rng(seed)), WORDS)
        pairs[len(prefix), len(prefix) + len(middle)] += 1
    # Two unordered uniform points: 1/256 on the diagonal, 2/256 above it.
    expected = (np.triu(np.ones((16, 16)), 1) * 2 + np.eye(16)) * 4000 / 256
    live = expected > 0
    assert pairs[~live].sum() == 0
    chi = ((pairs - expected)[live] ** 2 / expected[live]).sum()
    assert chi < 135 + 4 * np.sqrt(2 * 135)


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_the_rate_is_the_share_of_sequences_rearranged(rate: float) -> None:
    tokens = np.concatenate([[200], np.arange(40), [201]]).astype(np.int64)
    rng = np.random.default_rng(0)
    share = np.mean([WORDS.middle in infill.rearrange(tokens, WORDS, rate, rng) for _ in range(3000)])
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / 3000)


def test_a_prompt_is_a_training_sequence_up_to_its_middle() -> None:
    for tokens, rng in cases(50):
        if len(tokens) < infill.SHORTEST:
            continue
        out = infill.rearrange(tokens, WORDS, 1.0, rng)
        prefix, middle, suffix = infill.parts(out, WORDS)
        question = infill.prompt(prefix, suffix, WORDS)
        assert np.array_equal(np.concatenate([question, middle, [WORDS.end]]), out)
        assert infill.parts(question, WORDS)[1].tolist() == []
        assert infill.parts(np.concatenate([question, middle]), WORDS)[1].tolist() == middle.tolist()


@pytest.mark.parametrize("tokens", [[200, 1, 2], [200, 203, 1, 205, 2, 204], [200, 203, 1, 204, 2, 205, 3, 205]])
def test_only_a_sequence_in_infill_order_has_parts(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="infill order"):
        infill.parts(np.array(tokens), WORDS)


def test_a_sequence_begins_with_the_start_token() -> None:
    with pytest.raises(ValueError, match="start token"):
        infill.rearrange(np.arange(20), WORDS, 1.0, np.random.default_rng(0))
