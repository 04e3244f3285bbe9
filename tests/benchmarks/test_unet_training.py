"""The UNet benchmark's form and fairness, at toy sizes and without a look at the clock."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import unet_training
from benchmarks.measure import Row
from unveil.config import UNetConfig
from unveil.training import precision

TINY = UNetConfig(in_channels=2, channels=(8, 16), attention=("none", "both"), layers=1, groups=4, head_width=8)


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product at one rate, so that floors cost no second."""
    monkeypatch.setattr(precision, "matmul_rate", cache(lambda *shape: 1e12))


def check_form(row: Row) -> None:
    assert set(json.loads(json.dumps(asdict(row)))) == {"name", "ours", "peer", "peer_name", "ratio", "unit", "spread", "floor"}
    assert row.ours > 0 and row.peer > 0 and row.ratio > 0 and row.spread >= 0


def test_both_begin_as_the_same_network_and_take_the_same_step() -> None:
    network = unet_training.ours(TINY)
    peer = unet_training.theirs(network, 8)
    assert unet_training.disagreement(network, peer, 4, 8) < 1e-5
    for module, predict in ((network, network), (peer, unet_training.sample_of(peer))):
        unet_training.block(module, predict, 4, 8, steps=2)()
    moved = unet_training.ours(TINY)
    assert unet_training.disagreement(network, unet_training.theirs(moved, 8), 4, 8) > 1e-4
    assert unet_training.disagreement(network, peer, 4, 8) < 1e-3


def test_training_rows() -> None:
    check_form(unet_training.default(TINY, 2, 8, steps=1, pairs=5))
    row = unet_training.best(TINY, 2, 8, steps=1, pairs=5, precisions=("float32", "bfloat16"), modes=(False,))
    check_form(row)
    assert row.peer_name.startswith("diffusers") and ", eager, " in row.peer_name


def test_another_network_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = unet_training.theirs
    other = unet_training.ours(replace(TINY, norm_eps=1.0))
    monkeypatch.setattr(unet_training, "theirs", lambda network, size: theirs(other, size))
    with pytest.raises(RuntimeError, match="not the same network"):
        unet_training.default(TINY, 2, 8, steps=1, pairs=5)


def test_sampling_is_measured_against_all_its_calls() -> None:
    row = unet_training.sampling(count=2, steps=3, pairs=5)
    check_form(row)
    assert row.peer_name.startswith("5 calls") and row.floor is None  # two a step, but one in the last


def test_more_images_have_a_lower_floor() -> None:
    assert unet_training.floor(TINY, 2, 8) == pytest.approx(2 * unet_training.floor(TINY, 4, 8), rel=0.05)
    assert torch.is_grad_enabled()
