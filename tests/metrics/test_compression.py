from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest

from unveil.metrics.compression import BASELINES, bits_per_byte, context_probabilities, gzip, order3, unigram, xz

TEXT = b"the cat sat on the mat; the dog sat on the log. " * 6 + bytes(range(256))


class Twin:
    """The same context model as its definition reads: dictionaries, one byte at a time."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.counts: dict[bytes, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def distribution(self, past: bytes) -> list[float]:
        p = [1 / 256] * 256
        for k in range(self.order + 1):
            seen = self.counts.get(past[len(past) - k :], {}) if k <= len(past) else {}
            if seen:
                n, d = sum(seen.values()), len(seen)
                p = [(seen.get(x, 0) + d * p[x]) / (n + d) for x in range(256)]
        return p

    def update(self, past: bytes, x: int) -> None:
        for k in range(min(self.order, len(past)) + 1):
            self.counts[past[len(past) - k :]][x] += 1


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_context_model_is_its_slow_twin(order: int) -> None:
    twin, expected = Twin(order), []
    for i, x in enumerate(TEXT):
        p = twin.distribution(TEXT[:i])
        assert math.isclose(sum(p), 1, rel_tol=1e-12)
        expected.append(p[x])
        twin.update(TEXT[:i], x)
    np.testing.assert_allclose(context_probabilities(TEXT, order), expected, rtol=1e-12)


@pytest.mark.parametrize("begin", [0, 1, 2, 3, 40, len(TEXT) - 1])
def test_a_primed_model_scores_the_rest_as_one_stream_would(begin: int) -> None:
    np.testing.assert_array_equal(context_probabilities(TEXT, 3, begin), context_probabilities(TEXT, 3)[begin:])


def test_the_first_byte_costs_eight_bits() -> None:
    assert order3(b"a") == unigram(b"a") == 8.0


def test_unigram_of_a_known_stream() -> None:
    # after one a: p(a) = (1 + 1/256) / 2; after two: (2 + p0) / 3 with p0 = 1/256 and one distinct symbol
    expected = -(math.log2(1 / 256) + math.log2((1 + 1 / 256) / 2) + math.log2((2 + 1 / 256) / 3)) / 3
    assert unigram(b"aaa") == pytest.approx(expected, rel=1e-12)


def test_noise_costs_eight_bits_and_priming_with_itself_next_to_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert gzip(noise) == pytest.approx(8, abs=0.01)
    assert xz(noise) == pytest.approx(8, abs=0.05)
    assert xz(noise, noise) < 0.2
    assert gzip(noise, noise) < 0.3


def test_gzip_forgets_what_is_beyond_its_window() -> None:
    rng = np.random.default_rng(1)
    noise, filler = (rng.integers(0, 256, n, dtype=np.uint8).tobytes() for n in (4_000, 1 << 15))
    assert gzip(noise, noise + filler) > 7.9
    assert xz(noise, noise + filler) < 2


@pytest.mark.parametrize("name", BASELINES)
def test_nothing_to_score_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no held-out bytes"):
        BASELINES[name](b"", b"primer")


def test_uniform_model_closed_form() -> None:
    assert bits_per_byte(10 * math.log(512), 30) == pytest.approx(9 * 10 / 30)
