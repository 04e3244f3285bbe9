"""Training steps per second of our UNet against diffusers' with the same weights, and what sampling costs beyond the network.

A step of both is the same around the network: 16 images of 3 x 32 x 32, mean squared error, backward, clip at 1, fused AdamW. The
network is ``UNetConfig``'s default. ``default`` is each as its constructor makes it: float32, eager, theirs in rows of pixels, ours
channels-last. ``best`` is each in its fastest form. ``sampling`` is 1,000 digits by Heun's method in 18 steps with the network of the
recipe edm-digits, against the 35 calls of the network alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import setting
from benchmarks.measure import Block, Row, compare, fastest, rate, say
from unveil import recipe
from unveil.config import UNetConfig
from unveil.environment import device
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.family import evaluations
from unveil.gaussian.grid import karras
from unveil.gaussian.path import EDM
from unveil.gaussian.solvers import heun
from unveil.interop import unet
from unveil.interop.state import exported
from unveil.nn.unet import UNet
from unveil.training import precision
from unveil.training.allocator import keep_freed_memory

MODEL = UNetConfig(in_channels=3)
BATCH, SIZE = 16, 32
STEPS = 2
"""Training steps of a block: a second or two."""
DIGITS, HEUN_STEPS = 1000, 18
NAME = f"diffusers {diffusers.__version__} UNet2DModel"
PRECISIONS = ("float32", "bfloat16 autocast", "bfloat16")
"""Weights and compute float32; float32 weights under autocast; weights, gradients and moments all bfloat16."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}

Predict = Callable[[Tensor, Tensor], Tensor]


def rows() -> list[Row]:
    keep_freed_memory()  # as our trainer does; it acts on the process, so theirs gains as much
    return [default(), best(), sampling()]


def default(model: UNetConfig = MODEL, batch: int = BATCH, size: int = SIZE, steps: int = STEPS, pairs: int = 7) -> Row:
    """Each as its constructor makes it. Raises RuntimeError if the two do not compute the same function."""
    network = ours(model)
    difference = disagreement(network, theirs(network, size), batch, size)
    say(f"default: largest difference of the outputs, relative: {difference:.1e}")
    if difference > 1e-4:
        raise RuntimeError(f"default: the outputs differ by {difference:.1e}, so they are not the same network")
    peer = theirs(network, size)
    return compare(
        "default",
        block(network, network, batch, size, steps),
        block(peer, sample_of(peer), batch, size, steps),
        peer_name=f"{NAME}, float32, eager, contiguous",
        unit="steps/s",
        floor=floor(model, batch, size),
        pairs=pairs,
    )


def best(
    model: UNetConfig = MODEL,
    batch: int = BATCH,
    size: int = SIZE,
    steps: int = STEPS,
    pairs: int = 7,
    precisions: Sequence[str] = PRECISIONS,
    modes: Sequence[bool] = (True, False),
) -> Row:
    """Ours compiled, in the dtype that the trainer's probe chooses; theirs in the fastest of its forms."""
    network = ours(model)
    precision.apply(network, precision.compute_dtype("auto", device()))
    if modes[0]:
        network.compile()

    def candidate(full: str) -> Block:
        dtype, mode, layout = full.split(", ")
        peer = theirs(network, size).to(memory_format=LAYOUTS[layout])
        if dtype == "bfloat16":
            peer = peer.bfloat16()
        if mode == "compiled":
            peer.compile()
        return block(peer, sample_of(peer, dtype == "bfloat16 autocast"), batch, size, steps, layout)

    forms = product(precisions, ["compiled" if mode else "eager" for mode in modes], LAYOUTS)
    names = [", ".join(form) for form in forms]
    say("best: the peer's form")
    chosen = fastest({name: lambda n=name: candidate(n) for name in names})  # type: ignore[misc]
    return compare(
        "best",
        block(network, network, batch, size, steps),
        candidate(chosen),
        peer_name=f"{NAME}, {chosen}",
        unit="steps/s",
        floor=floor(model, batch, size),
        pairs=pairs,
    )


def sampling(count: int = DIGITS, steps: int = HEUN_STEPS, pairs: int = 5) -> Row:
    """Samples per second by the sampler, and by as many bare calls of the network: at 1.00 sampling costs nothing beyond them."""
    made = recipe.load("edm-digits").model
    assert isinstance(made, UNetConfig)
    network = ours(replace(made, in_channels=1)).eval()
    grid = karras(EDM(), steps)
    sampler = heun.sampler(Denoiser(network, "F", EDM(), "edm"), grid)
    calls = evaluations(sampler)
    x, level = torch.zeros(count, 1, 8, 8, device=device()), torch.zeros(count, device=device())

    @torch.no_grad()
    def bare() -> None:
        for _ in range(calls):
            network(x, level)

    return compare(
        f"sampling {count} digits, heun, {steps} steps",
        lambda: rate(lambda: sampler.sample((count, 1, 8, 8)), count),
        lambda: rate(bare, count),
        peer_name=f"{calls} calls of the same network",
        unit="images/s",
        floor=None,
        warmup=1,
        pairs=pairs,
    )


def ours(model: UNetConfig) -> UNet:
    """Weights that a trained network could have: none is left at zero."""
    torch.manual_seed(0)
    network = UNet(model)
    for p in network.parameters():
        if p.dim() > 1 and not p.any():
            nn.init.normal_(p, std=0.02)
    return network.to(device()).train()


def theirs(network: UNet, size: int) -> Any:
    """Their network with the same weights."""
    peer = diffusers.UNet2DModel.from_config(unet.settings(network.config, size))
    peer.load_state_dict(exported(network, unet.parts(network)))
    return peer.to(device()).train()


def sample_of(peer: Any, autocast: bool = False) -> Predict:
    """Their forward as a function of image and level, which it takes in its own dtype."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16) if autocast else contextlib.nullcontext():
            return peer(x.to(peer.dtype), t, return_dict=False)[0]

    return predict


def noised(batch: int, channels: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, levels and targets, the same for both."""
    rng = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch, channels, size, size, generator=rng).to(device()) for _ in range(2))
    return x, (torch.rand(batch, generator=rng) * 1000).to(device()), target


@torch.no_grad()
def disagreement(network: UNet, peer: Any, batch: int, size: int) -> float:
    """Largest difference of their outputs over the largest output."""
    x, t, _ = noised(batch, network.config.in_channels, size)
    expected = sample_of(peer)(x, t)
    return float((network(x, t) - expected).abs().max() / expected.abs().max())


def block(network: nn.Module, predict: Predict, batch: int, size: int, steps: int, layout: str = "contiguous") -> Block:
    """So many training steps."""
    channels = network.config.in_channels  # type: ignore[union-attr]
    x, t, target = noised(batch, channels, size)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        F.mse_loss(predict(x, t).float(), target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: rate(step, 1, steps)


def floor(model: UNetConfig, batch: int, size: int) -> float:
    """Steps per second of a step that does nothing but our network's FLOPs, at the best matrix product measured here."""
    network = ours(model)
    x, t, _ = noised(batch, model.in_channels, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, t)
    peak = setting.undisturbed(lambda: max(precision.peak_flops(dtype, device()) for dtype in (torch.float32, torch.bfloat16)))
    return peak / (3 * counter.get_total_flops())
