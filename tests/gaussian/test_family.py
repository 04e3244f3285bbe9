"""The contract kept for images: draws, denominators, rows, and the sampler section as a sampler."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unveil.config import GaussianConfig, GaussianSamplerConfig, PathConfig, UNetConfig
from unveil.data.images import Images, levels
from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.family import Curve, ImageRequest
from unveil.gaussian.family import Gaussian
from unveil.gaussian.model import GaussianModel

SHAPE = (1, 4, 4)
NETWORK = UNetConfig(channels=(8, 8), attention=("none", "none"), layers=1, groups=4, head_width=8)


def family(
    objective: dict[str, Any] | None = None,
    sampler: dict[str, Any] | None = None,
    classes: int = 0,
    augmentation: int = 0,
    embedding: int = 0,
) -> Gaussian:
    config = GaussianConfig(**(objective or {}))
    solver = GaussianSamplerConfig(**{"steps": 4, **(sampler or {})})
    return Gaussian(SHAPE, NETWORK, config, solver, classes, augmentation, seed=5, embedding=embedding)


def model(kind: Gaussian) -> GaussianModel:
    torch.manual_seed(0)
    built = kind.build()
    assert isinstance(built, GaussianModel)
    for p in built.parameters():  # what begins at zero would hide mistakes
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return built.double().eval()


def batch(kind: Gaussian, count: int = 6, labels: bool = False) -> tuple[Images, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(0)
    draws = [kind.draw(i, 0, 1, generator(0, 0, i, "draw")) for i in range(count)]
    noise = {name: torch.from_numpy(np.concatenate([d[name] for d in draws])) for name in draws[0]}
    x = torch.from_numpy(rng.integers(0, 256, (count, *SHAPE))).double() / 127.5 - 1
    return Images(x, torch.arange(count), torch.arange(count) % 3 if labels else None), noise


def uncovered(kind: Gaussian, network: GaussianModel, requests: list[ImageRequest]) -> list[Any]:
    state = kind.begin(network, requests)
    snapshots = []
    while state.live:
        snapshots.append(kind.step(network, state))
    return snapshots


def test_noise_levels_are_stratified_over_an_epoch_and_belong_to_the_sample() -> None:
    kind = family(classes=3)
    draws = [kind.draw(i, 0, 1, generator(1, 0, i, "draw")) for i in range(64)]
    u = np.sort([float(d["u"][0]) for d in draws])
    assert np.diff(u).max() < 2.7 / 64
    assert draws[3]["eps"].shape == (1, *SHAPE) and draws[3]["eps"].dtype == np.float32
    again = family(classes=3).draw(3, 0, 1, generator(1, 0, 3, "draw"))
    assert all(np.array_equal(again[name], draws[3][name]) for name in again)
    assert kind.draw(3, 1, 1, generator(1, 0, 3, "draw"))["u"] != draws[3]["u"]
    assert "told" not in family().draw(0, 0, 1, generator(1, 0, 0, "draw"))


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"importance": True, "uncertainty": True},
        {"coupling": "optimal-transport"},
        {"path": PathConfig(kind="ddpm"), "predicts": "eps", "preconditioning": "none", "weighting": "hybrid"},
        {"path": PathConfig(kind="ddpm", steps=50), "predicts": "v", "preconditioning": "none", "weighting": "vlb", "density": "uniform"},
        {"path": PathConfig(kind="rectified-flow", shift=2.0), "predicts": "flow", "preconditioning": "none", "density": "u-shaped"},
    ],
)
def test_every_term_has_a_denominator_and_the_gradient_reaches_every_weight(objective: dict[str, Any]) -> None:
    kind = family(objective)
    network = model(kind)
    images, noise = batch(kind)
    denominators = kind.targets(images, noise)
    terms = kind.loss(network, images, noise)
    assert terms.keys() == denominators.keys()
    loss = sum(t.weight * t.sum / denominators[n] for n, t in terms.items() if t.weight)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.any(), name
    assert {name.split(".")[0] for name in network.state_dict()} >= {"denoiser"}
    assert any(name.startswith("importance") for name in network.state_dict()) == bool(objective.get("importance"))


def test_a_step_does_not_depend_on_how_it_is_cut() -> None:
    kind = family(classes=3)
    network = model(kind)
    images, noise = batch(kind, labels=True)
    whole = kind.loss(network, images, noise)["loss"].sum.detach()
    parts = [
        kind.loss(network, one, {k: v[i : i + 1] for k, v in noise.items()})["loss"].sum.detach() for i, one in enumerate(images.split())
    ]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-12)
    assert kind.targets(images, noise)["loss"] == images.x_NCHW.numel()


def test_an_untold_class_is_the_null_class() -> None:
    kind = family({"class_dropout": 1.0}, classes=3)
    network = model(kind)
    images, noise = batch(kind, labels=True)
    assert not noise["told"].any()
    other = replace(images, labels_N=(images.labels_N + 1) % 3)  # type: ignore[operator]
    assert torch.equal(kind.loss(network, images, noise)["loss"].sum, kind.loss(network, other, noise)["loss"].sum)
    told = {**noise, "told": torch.ones(6, dtype=torch.bool)}
    assert float(kind.loss(network, images, told)["loss"].sum) != float(kind.loss(network, other, told)["loss"].sum)


def test_rows_are_those_of_each_request_alone_and_do_not_change() -> None:
    kind = family({}, {"kind": "heun"}, classes=3)
    network = model(kind)
    requests = [ImageRequest(SHAPE, seed, label) for seed, label in ((3, 0), (4, None), (3, 2))]
    snapshots = uncovered(kind, network, requests)
    kept = [[row.image.copy() for row in s.rows] for s in snapshots]
    assert [s.step for s in snapshots] == [1, 2, 3, 4] and [r.final for r in snapshots[-1].rows] == [True] * 3
    for i, request in enumerate(requests):
        alone = uncovered(kind, network, [request])
        for s, t in zip(snapshots, alone, strict=True):
            assert np.allclose(s.rows[i].image, t.rows[0].image, atol=1e-6)
            assert np.allclose(s.rows[i].denoised, t.rows[0].denoised, atol=1e-6)
    assert all(
        np.array_equal(row.image, was) for s, rows in zip(snapshots, kept, strict=True) for row, was in zip(s.rows, rows, strict=True)
    )
    final = snapshots[-1].rows
    assert np.allclose(final[0].image, final[0].denoised, atol=1e-6) and not np.allclose(final[0].image, final[2].image)


def test_a_latent_takes_the_place_of_a_seed_and_inversion_finds_it() -> None:
    kind = family({}, {"kind": "heun", "steps": 40, "n_max": 20.0, "n_min": 0.02})
    network = model(kind)
    latents = kind.latents([3, 4])
    by_seed = uncovered(kind, network, [ImageRequest(SHAPE, s) for s in (3, 4)])[-1].rows
    by_latent = uncovered(kind, network, [ImageRequest(SHAPE, 0, latent=latent.numpy()) for latent in latents])[-1].rows
    assert all(np.allclose(a.image, b.image, atol=1e-5) for a, b in zip(by_seed, by_latent, strict=True))
    back = kind.invert(network, torch.from_numpy(np.stack([row.image for row in by_seed])))
    assert (back - latents).abs().max() < 0.05 * latents.abs().max()
    noisy = family({}, {"kind": "ancestral"})
    with pytest.raises(UserError, match="draws noise"):
        noisy.invert(model(noisy), torch.zeros(1, *SHAPE))


def test_what_is_known_of_an_image_stays() -> None:
    kind = family({}, {"kind": "ancestral", "resamples": 2})
    network = model(kind)
    known, mask = np.full(SHAPE, 0.5, np.float32), np.ones((4, 4), np.bool_)
    mask[1:3, 1:3] = False
    rows = uncovered(kind, network, [ImageRequest(SHAPE, s, known=known, mask=mask) for s in (1, 2)])[-1].rows
    assert all((row.image[:, mask] == 0.5).all() for row in rows)
    assert not np.array_equal(rows[0].image, rows[1].image)


def test_steps_follow_from_evaluations() -> None:
    kind = family({}, {"kind": "heun", "clip": 1.0})
    network = model(kind)
    assert kind.evaluations(network) == 7
    for solver, count, steps in (("heun", 35, 18), ("heun", 10, 5), ("ddim", 10, 10), ("dpmpp-2s", 9, 5)):
        chosen = kind.with_evaluations(network, count, solver)
        assert (chosen.sampler.kind, chosen.sampler.steps, chosen.sampler.clip) == (solver, steps, 1.0)
        assert chosen.evaluations(network) <= count
    with pytest.raises(UserError, match="steps"):
        kind.with_evaluations(network, 1, "dpmpp-3m")
    with pytest.raises(UserError, match="did you mean 'heun'"):
        kind.with_evaluations(network, 5, "huen")


def test_a_sampler_goes_with_its_network() -> None:
    kind = family({}, {})
    first, second = model(kind), model(kind)
    assert kind._sampler(first) is kind._sampler(first) is not kind._sampler(second)
    del first
    gc.collect()
    assert list(kind._samplers) == [second], "another network may get the place in memory that the first one had"


def test_guidance_pushes_along_the_class_and_wants_one() -> None:
    plain, guided = family({}, {}, classes=3), family({}, {"guidance": 3.0}, classes=3)
    network = model(plain)
    images = [uncovered(kind, network, [ImageRequest(SHAPE, 1, 2)])[-1].rows[0].image for kind in (plain, guided)]
    untold = [uncovered(kind, network, [ImageRequest(SHAPE, 1)])[-1].rows[0].image for kind in (plain, guided)]
    assert not np.allclose(*images, atol=0.1) and np.allclose(*untold, atol=1e-3)
    unconditional = family({}, {"guidance": 3.0})
    with pytest.raises(UserError, match="unconditional"):
        unconditional.begin(model(unconditional), [ImageRequest(SHAPE)])


WRONG = {
    "solver": ({"kind": "hoin"}, "sampler.kind"),
    "grid": ({"grid": "karas"}, "sampler.grid"),
    "grid of a table": ({"grid": "trailing"}, "sampler.grid"),
    "setting of another grid": ({"grid": "uniform", "rho": 3.0}, "sampler.rho"),
    "option of another solver": ({"kind": "dpmpp-2m", "eta": 0.5}, "sampler.eta"),
    "option outside its range": ({"kind": "ddim", "eta": 1.5}, "sampler.eta"),
    "too few steps": ({"kind": "dpmpp-3m", "steps": 1}, "sampler.steps"),
    "learned variance of a network without": ({"kind": "ancestral", "variance": "learned"}, "sampler.variance"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_sampler_is_refused_by_field(case: str) -> None:
    sampler, field = WRONG[case]
    kind = family({}, sampler)
    with pytest.raises(UserError) as error:
        kind.begin(model(kind), [ImageRequest(SHAPE)])
    assert error.value.field == field


def test_a_class_that_does_not_exist_is_refused() -> None:
    for classes, label in ((3, 3), (0, 1)):
        kind = family(classes=classes)
        with pytest.raises(UserError, match="label"):
            kind.begin(model(kind), [ImageRequest(SHAPE, 0, label)])


def test_another_path_samples_the_same_flow() -> None:
    """EDM's unification through the recipe: the same noise levels on another path give the same images."""
    settings = {"kind": "euler", "steps": 6, "n_min": 0.02, "n_max": 40.0, "grid": "karras"}
    images = []
    for path in ("trained", "vp", "cosine"):
        kind = family({}, {**settings, "path": path})
        images.append(uncovered(kind, model(kind), [ImageRequest(SHAPE, latent=kind.latents([1])[0].numpy())])[-1].rows[0].image)
    # the paths begin at sigma(t) of one n, so the state is another scale of nearly the same
    assert np.allclose(images[0], images[1], atol=2e-3) and np.allclose(images[1], images[2], atol=2e-3)


def test_likelihood_is_in_nats_of_the_whole_image() -> None:
    from unveil.gaussian.likelihood import bits_per_dim

    kind = family()
    network = model(kind)
    images, _ = batch(kind, 1)
    found, error = kind.log_likelihood(network, images, 2, seed=0)
    seeds = [int(generator(0, 0, 0, "likelihood").integers(2**63))]
    bits, _ = bits_per_dim(network.denoiser, kind.path, levels(images.x_NCHW), seeds, draws=2, data_std=0.5)
    assert torch.allclose(-found / (np.log(2) * 16), bits) and (error > 0).all()


def test_views_average_the_error_by_noise_level() -> None:
    rows = [{"step": i, "train/error n 0.1-0.3": float(i)} for i in range(10)]
    (curve,) = family().views(SimpleNamespace(metrics=rows))
    assert isinstance(curve, Curve) and len(curve.x) == 10
    values = [[v for v in line if v == v] for line in curve.y.values()]
    assert values == [[0.5], [8.5]]
    assert family().views(SimpleNamespace(metrics=[])) == []


def test_flops_are_counted_on_the_network() -> None:
    kind = family()
    small = model(kind).float().flops_per_sample()
    wide = Gaussian(SHAPE, replace(NETWORK, channels=(16, 16)), GaussianConfig(), GaussianSamplerConfig())
    built = wide.build()
    assert isinstance(built, GaussianModel) and 3 < built.flops_per_sample() / small < 4.2


def test_a_text_is_told_or_dropped_and_guides() -> None:
    kind = family({"class_dropout": 0.5}, embedding=3)
    net = model(kind)
    draws = [kind.draw(i, 0, 1, generator(5, 0, i, "draw")) for i in range(64)]
    assert 0.3 < np.mean([d["told"] for d in draws]) < 0.7
    noise = {name: torch.from_numpy(np.concatenate([d[name] for d in draws[:6]])) for name in draws[0]}
    x = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids, told = torch.arange(6), noise["told"]
    words = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    losses = [
        kind.loss(net, Images(x, ids, embedding_NE=e), {**noise, "told": t})["loss"].sum.item()
        for e, t in ((words, told), (words * told[:, None], torch.ones(6, dtype=torch.bool)), (words, torch.ones(6, dtype=torch.bool)))
    ]
    assert losses[0] == losses[1] != losses[2]

    def ends(weight: float, *embeddings: Any) -> Any:
        guided = family(sampler={"guidance": weight}, embedding=3)
        state = guided.begin(net, [ImageRequest(SHAPE, 7, embedding=e) for e in embeddings])
        while state.live:
            last = guided.step(net, state)
        return np.stack([row.image for row in last.rows])

    said, zeros = words[0].numpy(), np.zeros(3, np.float32)
    plain = ends(1.0, said, None)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3 and np.allclose(ends(1.0, zeros)[0], plain[1], atol=1e-6)
    assert np.allclose(ends(0.0, said)[0], plain[1], atol=1e-5) and not np.allclose(ends(3.0, said)[0], plain[0], atol=1e-3)
