"""Streams, a chunk at a time, against the batch form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.streams.small import KINDS, STEPS, clips, features, make
from unveil.errors import UserError
from unveil.streams.detector import scored
from unveil.streams.streaming import Scores, Streamer, prepared

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("oadtr", {}),
    "released": ("oadtr", {"decoder_causal": True, "query_positions": "unread"}),
    "no task token": ("oadtr", {"task_token": False}),
    "no decoder": ("oadtr", {"horizon": 0}),
    "not joined": ("oadtr", {"joined": False}),
    "causal": ("causal", {}),
    "causal, joined": ("causal", {"joined": True}),
    "recurrent": ("recurrent", {}),
}


@torch.no_grad()
def batch_form(network: Any, history: Tensor) -> Scores:
    logits = network(clips(history))
    return Scores(*(scored(values, (3,)).softmax(-1) for values in logits))


def assert_equal(found: Scores, row: int, expected: Scores, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found.present_BC[row], expected.present_BC[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(found.future_BKC[row], expected.future_BKC[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_step_equals_the_batch_form_from_the_first(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    """Three streams, one of which misses every third step, so that histories, slots and rows differ."""
    kind, switches = VARIANTS[variant]
    network, x = make(kind, dtype, **switches), features(3, 20, dtype=dtype)
    streamer, had = Streamer(network, 4), [0, 0, 0]
    for step in range(20):
        who = [2, 0] if step % 3 == 0 else [0, 1, 2]
        scores = streamer.push([f"camera {i}" for i in who], torch.stack([x[i, had[i]] for i in who]))
        for row, i in enumerate(who):
            had[i] += 1
            first = max(had[i] - STEPS, 0) if kind == "oadtr" else 0
            assert_equal(scores, row, batch_form(network, x[i, first : had[i]]), tolerance)
    assert streamer.open == {"camera 2": 20, "camera 0": 20, "camera 1": 13}


@pytest.mark.parametrize("kind", ["oadtr", "causal"])
def test_a_long_stream_stays_where_it_is_and_equals_a_fresh_start(kind: str) -> None:
    """An hour at 4 chunks a second: rings keep their storage, scores are those of a stream that began with the last chunks."""
    network, x = make(kind, torch.float32), features(1, dtype=torch.float32)
    streamer, fresh = Streamer(network), Streamer(network)
    streamer._streams.seen = [14_400 - 2 * STEPS]  # as if it had run so long: what it had before is out of every window below
    streamer._rows, streamer._ids = {0: 0}, [0]
    places = {name: ring.data_ptr() for name, ring in streamer._streams.rings.items()}
    generator = torch.Generator().manual_seed(2)
    for step in range(2 * STEPS):
        x = torch.randn(1, 5, generator=generator)
        scores = streamer.push([0], x)
        if step >= STEPS:
            expected = fresh.push([0], x)
    assert scores.present_BC.isfinite().all() and streamer.open == {0: 14_400}
    assert_equal(scores, 0, expected, 1e-5)
    assert places == {name: ring.data_ptr() for name, ring in streamer._streams.rings.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_stream_begins_anew_and_leaves_the_others_alone(kind: str) -> None:
    network, x = make(kind), features(2, 12)
    streamer, lone = Streamer(network, 2), Streamer(network)
    for t in range(10):
        streamer.push(["a", "b"], x[:, t])
        lone.push(["b"], x[1:, t])
    streamer.reset(["a"])
    assert streamer.open == {"b": 10}
    scores = streamer.push(["c", "b"], x[:, 10])
    assert_equal(scores, 0, batch_form(network, x[0, 10:11]))
    assert_equal(scores, 1, lone.push(["b"], x[1:, 10]))
    streamer.reset()
    assert not streamer.open


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_restored_in_the_middle(kind: str, tmp_path: Any) -> None:
    network, x = make(kind), features(3, 16)
    whole, before, after = (Streamer(network, n) for n in (3, 3, 5))
    after.push(["stranger"], x[0, :1])
    for t in range(16):
        expected = whole.push(["a", "b", "c"], x[:, t])
        if t < 11:
            before.push(["a", "b", "c"], x[:, t])
        elif t == 11:
            before.reset(["b"])
            torch.save(before.state_dict(), tmp_path / "state.pt")
            after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert after.open == {"a": 11, "c": 11}
        if t >= 11:
            found = after.push(["a", "c"], x[[0, 2], t])
            torch.testing.assert_close(found.present_BC, expected.present_BC[[0, 2]], rtol=0, atol=1e-12)
            torch.testing.assert_close(found.future_BKC, expected.future_BKC[[0, 2]], rtol=0, atol=1e-12)


def test_a_saved_state_is_a_copy() -> None:
    streamer, x = Streamer(make("causal")), features(2)
    streamer.push(["a"], x[:1])
    state = streamer.state_dict()
    kept = copy.deepcopy(state)
    streamer.push(["a"], x[1:])
    assert state["seen"] == kept["seen"] == [1]
    assert all(torch.equal(ring, kept["rings"][name]) for name, ring in state["rings"].items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_present_alone(kind: str) -> None:
    """Without the futures the present is the same; where it does not hang on them the decoder is not even there."""
    network, x = make(kind), features(12)
    both, alone = Streamer(network), Streamer(network, futures=False)
    for t in range(12):
        expected, found = both.push([0], x[t : t + 1]), alone.push([0], x[t : t + 1])
        torch.testing.assert_close(found.present_BC, expected.present_BC, rtol=0, atol=1e-12)
    assert found.future_BKC.shape == (1, 0, 4)
    assert (alone.stepper.decoder is None) == (kind != "oadtr")  # type: ignore[attr-defined]


def test_ignored_classes_have_no_probability() -> None:
    scores = Streamer(make("oadtr")).push([0], features(1))
    for values in scores:
        assert not values[..., 3].any()
        torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1], dtype=torch.float64))


@torch.no_grad()
def test_another_dtype_is_another_copy_and_near() -> None:
    network, x = make("oadtr", torch.float32, features=5), features(12, dtype=torch.float32)
    narrow, wide = Streamer(network, dtype=torch.bfloat16), Streamer(network)
    assert wide.network is network and narrow.network is not network
    assert network.enter.weight.dtype == torch.float32 and narrow.network.enter.weight.dtype == torch.bfloat16
    for t in range(12):
        found, expected = narrow.push([0], x[t : t + 1]), wide.push([0], x[t : t + 1])
    assert found.present_BC.dtype == torch.float32
    assert 0 < float((found.present_BC - expected.present_BC).abs().max()) < 0.2


def test_a_network_in_training_is_copied_out_of_it() -> None:
    network = make("oadtr", dropout=0.5).train()
    assert not prepared(network).training and network.training
    streamer, x = Streamer(network), features(1)
    assert torch.equal(streamer.push(["a"], x).present_BC, Streamer(network).push(["a"], x).present_BC)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_named_and_nothing_is_taken(kind: str) -> None:
    streamer, x = Streamer(make(kind), 2), features(3)
    streamer.push(["a"], x[:1])
    broken = x[:2].clone()
    broken[1, 3] = float("nan")
    for ids, given, told in (
        (["a", "b", "a"], x, "stream: 'a' is pushed twice in one step; push one chunk"),
        (["b", "c"], x[:2], "streams: 3 streams, there is room for 2; reset"),
        (["a"], x[:1, :4], r"features: got shape \[1, 4\], wanted \[1, 5\]; use the extractor"),
        (["a"], x[:2], r"features: got shape \[2, 5\], wanted \[1, 5\]"),
        (["a", "b"], broken, "features: of stream 'b' are not finite"),
        ([], x[:0], "stream: none is pushed"),
    ):
        with pytest.raises(UserError, match=told):
            streamer.push(ids, given)
        assert streamer.open == {"a": 1}
    with pytest.raises(UserError, match="stream: 'z' is not open"):
        streamer.reset(["z"])
    with pytest.raises(UserError, match="streams: got 0"):
        Streamer(make(kind), 0)
    state = Streamer(make(kind), 3)
    state.push(["a", "b", "c"], x)
    with pytest.raises(UserError, match="the state holds 3, there is room for 2"):
        streamer.load_state_dict(state.state_dict())
    with pytest.raises(UserError, match="another network"):
        streamer.load_state_dict(Streamer(make(kind, width=32)).state_dict())


def test_arrays_are_taken_too() -> None:
    x = features(1)
    assert torch.equal(Streamer(make("causal")).push([0], x.numpy()).present_BC, Streamer(make("causal")).push([0], x).present_BC)
