from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from unveil.data.stream_features import Recordings
from unveil.data.synth_stream import ACTIONS, CLASSES, CUE_RIGHT, LENGTH, STREAMS, chain, synth_stream


@pytest.fixture(scope="module")
def streams() -> Recordings:
    return synth_stream()


def test_the_data_is_the_same_for_ever(streams: Recordings) -> None:
    assert {part: len(found) for part, found in streams.parts.items()} == STREAMS and streams.about.rate == 4
    digest = hashlib.sha256()
    for recording in streams.parts["test"]:
        digest.update(recording.labels_T.tobytes())
        # hundredths: the last bit of a Gaussian draw is not the same on every platform
        digest.update(np.round(recording.features_TF * 100).astype(np.int16).tobytes())
    assert digest.hexdigest() == "4a4b51ab7a0f41ebd30d33135a7013974574d2ac0f70fba0d128cfa71bcbbac9"
    assert not np.array_equal(streams.parts["test"][0].features_TF, streams.parts["train"][0].features_TF)
    assert not np.array_equal(synth_stream(1).parts["test"][0].labels_T, streams.parts["test"][0].labels_T)


def test_actions_and_gaps_last_as_stated(streams: Recordings) -> None:
    labels = [r.labels_T for r in streams.parts["train"]]
    share = np.bincount(np.concatenate(labels), minlength=ACTIONS + 1) / (STREAMS["train"] * LENGTH)
    np.testing.assert_allclose(share[1:], 20 / 59 / ACTIONS, atol=0.006)
    actions, gaps = [], []
    for one in labels:
        bounds = np.flatnonzero(np.diff(one)) + 1
        for start, stop in pairwise(bounds):  # the first and the last are cut
            (actions if one[start] else gaps).append(stop - start)
    assert min(actions) == 6 and np.mean(actions) == pytest.approx(20, abs=0.5)
    assert np.mean(gaps) == pytest.approx(39, abs=2.5)  # a little less: a stream's end cuts the longest most often


def test_a_single_chunk_never_tells_which_of_a_pair() -> None:
    source = chain()
    shown = np.stack([np.bincount(source.emission_S, source.stationary_S * (source.label_S == c)) for c in range(len(CLASSES))])
    for first in range(1, ACTIONS + 1, 2):
        np.testing.assert_allclose(shown[first], shown[first + 1], atol=1e-12)
        assert (shown[0][shown[first] > 0] > 0).all()  # near misses show each of its patterns to the background
        assert not np.any((shown[first] > 0) & (shown[(first + 1) % ACTIONS + 1] > 0))


def test_a_cue_names_the_next_action_four_times_out_of_five() -> None:
    source = chain()
    cues = [np.flatnonzero(source.emission_S == row) for row in range(5, 13)]
    assert all(len(found) == 1 for found in cues)
    ahead = np.linalg.matrix_power(source.transition_SS, 6)  # the longest lead, the shortest action
    for named, (state,) in enumerate(cues, start=1):
        told = np.bincount(source.label_S, ahead[state], minlength=len(CLASSES))
        assert told[0] < 0.01 and told[named] / told[1:].sum() == pytest.approx(CUE_RIGHT)
