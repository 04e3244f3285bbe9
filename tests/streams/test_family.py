"""The contract kept for streams: terms, rows, likelihood, and settings that do not fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.streams.small import SIZES, STEPS, clips, features
from unveil.config import OptimizerConfig, Recipe, StreamsRecipe, TrainingConfig
from unveil.config_streams import CausalConfig, OadTRConfig, RecurrentConfig, StreamModelConfig, StreamObjectiveConfig, StreamSamplerConfig
from unveil.data.clips import Clips
from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.family import Curve, StreamRequest, StreamRow
from unveil.streams.family import OnlineDetection
from unveil.streams.streaming import Streamer
from unveil.training.loop import Trainer

SMALL = {name: SIZES[name] for name in ("width", "horizon", "decoder_depth", "decoder_heads")}
MODELS: dict[str, StreamModelConfig] = {
    "oadtr": OadTRConfig(steps=STEPS, heads=4, depth=1, **SMALL),
    "causal": CausalConfig(steps=STEPS, heads=4, depth=1, **SMALL),
    "recurrent": RecurrentConfig(**SMALL),
}


def family(model: StreamModelConfig, **switches: Any) -> OnlineDetection:
    return OnlineDetection(5, 4, (3,), model, StreamObjectiveConfig(), StreamSamplerConfig(**switches))


def built(kind: OnlineDetection) -> Any:
    torch.manual_seed(0)
    return kind.build().double().eval()


def followed(kind: OnlineDetection, network: Any, lengths: list[int]) -> list[list[StreamRow]]:
    state = kind.begin(network, [StreamRequest(features(n).numpy()) for n in lengths])
    found = []
    while state.live:
        found.append(kind.step(network, state).rows)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_streams_scores_until_their_last_chunk(name: str) -> None:
    kind = family(MODELS[name])
    network, lengths = built(kind), [3, 11, 1]
    steps = followed(kind, network, lengths)
    assert [[(row.request, row.chunk, row.final) for row in rows] for rows in steps[:2]] == [
        [(0, 0, False), (1, 0, False), (2, 0, True)],
        [(0, 1, False), (1, 1, False)],
    ]
    assert len(steps) == 11
    for number, length in enumerate(lengths):
        streamer, x = Streamer(network), features(length)
        for t in range(length):
            row = next(row for row in steps[t] if row.request == number)
            scores = streamer.push([0], x[t : t + 1])
            np.testing.assert_allclose(row.present, scores.present_BC[0].numpy(), atol=1e-6)
            np.testing.assert_allclose(row.future, scores.future_BKC[0].numpy(), atol=1e-6)
            assert row.final == (t + 1 == length)


@pytest.mark.parametrize("name", MODELS)
def test_states_are_selected_and_joined(name: str) -> None:
    kind = family(MODELS[name])
    network = built(kind)
    alone = [rows[0] for rows in followed(kind, network, [9])]
    early, late = (kind.begin(network, [StreamRequest(features(n).numpy()) for n in lengths]) for lengths in ([7, 9], [2]))
    for _ in range(4):
        kind.step(network, early)
    joined = late.join(early.select([1]))
    rows = kind.step(network, joined).rows
    assert [row.chunk for row in rows] == [0, 4] and joined.live == 2
    np.testing.assert_allclose(rows[1].present, alone[4].present, atol=1e-6)
    kind.step(network, joined)
    assert joined.live == 1
    np.testing.assert_allclose(kind.step(network, joined).rows[0].future, alone[6].future, atol=1e-6)


def test_the_log_likelihood_is_that_of_the_present() -> None:
    kind = family(MODELS["oadtr"])
    network, batch = built(kind), clips(*(features(n) for n in (8, 3, 2)))
    found, error = kind.log_likelihood(network, batch, 1, 0)
    for i, length in enumerate((8, 3)):
        rows = followed(kind, network, [length])
        assert float(found[i].exp()) == pytest.approx(rows[-1][0].present[batch.present_N[i]], abs=1e-6)
    assert found[2] == 0 and not error.any()


def test_every_network_learns_through_the_trainer(tmp_path: Any) -> None:
    """Whether the sum of the first feature over the last three chunks is positive, and the same of the chunks ahead: 1 or 2."""

    class Windows:
        def __init__(self) -> None:
            self.at = 0

        def __iter__(self) -> Windows:
            return self

        def __next__(self) -> tuple[Any, dict[str, Any]]:
            rng = generator(0, 0, self.at, "windows")
            self.at += 1
            windows = [torch.from_numpy(rng.standard_normal((int(rng.integers(3, 9)), 5)).astype(np.float32)) for _ in range(16)]
            labels = torch.tensor([1 + int(window[-3:, 0].sum() > 0) for window in windows])
            return Clips.of(windows, labels, labels[:, None].expand(-1, 3).contiguous()), {}

        def state_dict(self) -> dict[str, Any]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.at = state["at"]

    for name, model in MODELS.items():
        kind = family(replace(model, dropout=0.0))
        torch.manual_seed(0)
        training = TrainingConfig(steps=60, dtype="float32", compile="off", log_every=20)
        recipe = Recipe(optimizer=OptimizerConfig(lr=1e-2), training=training)
        last = Trainer(kind, kind.build(), Windows(), recipe, tmp_path / name, console=False).fit()  # type: ignore[arg-type]
        assert last["train/present"] < 0.6, (name, last)  # chance: log 2
        assert last["train/future"] == pytest.approx(np.mean([last[f"train/future {k}"] for k in (1, 2, 3)]), rel=1e-4)


def test_views_of_a_run() -> None:
    kind = family(MODELS["causal"])
    rows = [{"train/present": 1.0 / n, "train/future 1": 2.0 / n, "train/future 3": 4.0 / n} for n in range(1, 11)]
    (view,) = kind.views(SimpleNamespace(metrics=rows))
    assert isinstance(view, Curve) and list(view.x) == [0, 1, 2, 3]
    assert view.y["first fifth of training"][:2] == [0.75, 1.5] and np.isnan(view.y["last fifth of training"][2])
    assert kind.views(SimpleNamespace(metrics=[{"lr": 1.0}])) == []


def test_nothing_is_drawn_and_nothing_cut() -> None:
    kind, rng = family(MODELS["causal"]), np.random.default_rng(0)
    assert kind.draw(0, 0, 5, rng) == {} and kind.transform(np.arange(3), rng).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (OadTRConfig(heads=3), "model.heads: 3 do not divide model.width = 1024"),
        (OadTRConfig(decoder_heads=3), "model.decoder_heads: 3 do not divide"),
        (CausalConfig(heads=1024), "model.heads: 1024 do not cut model.width = 1024 into even parts"),
        (CausalConfig(steps=3), "model.window: 4 times 0 chunks back do not fit into steps 3; lower"),
    ],
)
def test_settings_that_do_not_fit(model: StreamModelConfig, told: str) -> None:
    with pytest.raises(UserError, match=told):
        family(model)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="ignored: got class 0 of 4"):
        OnlineDetection(5, 4, (0,), MODELS["causal"], StreamObjectiveConfig(), StreamSamplerConfig())
    kind = family(MODELS["causal"])
    for wrong in (features(3)[:, :4], features(0)):
        with pytest.raises(UserError, match="features: of stream 1 have shape"):
            kind.begin(built(kind), [StreamRequest(features(2).numpy()), StreamRequest(wrong.numpy())])


def test_the_recipe_holds_all_sections() -> None:
    recipe = StreamsRecipe()
    kind = OnlineDetection(3072, 22, (21,), recipe.model, recipe.objective, recipe.sampler)
    with torch.device("meta"):
        assert sum(p.numel() for p in kind.build().parameters()) == 74_709_036
