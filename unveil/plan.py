"""What a recipe costs before it runs: parameters, FLOPs, memory by part, time here; and what to change where it does not fit.

Parameters and activations are counted on the network itself, built without storage on PyTorch's ``meta`` device, so no formula has to
follow the code. H is the head's chunk of logits, V the vocabulary, D the width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unveil import initial
from unveil.adapters import bits, lora
from unveil.config import AnyRecipe, AutoregressiveRecipe, GaussianRecipe, StreamsRecipe, TextRecipe, TokenizerConfig
from unveil.data.pixels import prepare_images
from unveil.data.tokenizer import SPECIALS, Tokenizer
from unveil.encoders import Encoders
from unveil.environment import device
from unveil.errors import UserError
from unveil.families import family, images
from unveil.gaussian.level import Level
from unveil.nn import mtp
from unveil.nn.head import CHUNK_ELEMENTS
from unveil.nn.packed import Packed
from unveil.nn.self_attention import head_width
from unveil.nn.transformer import active
from unveil.text.vocabulary import Vocabulary
from unveil.text_run import flops_per_token
from unveil.training import precision

UTILISATION = 0.35
"""Share of the best matrix product that training a small network on a CPU reaches."""
CHARACTERS = 100
"""Assumed where the alphabet is known only when the text is read."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Plan:
    """Costs of one recipe on this machine. Memory in bytes, at the fullest moment of a step."""

    recipe: Any
    dtype: torch.dtype
    peak: float
    """FLOP/s of the best matrix product measured here."""

    unit = "token"
    spare = "data.context, model.width or model.depth"
    """What to lower where nothing else helps."""

    @cached_property
    def network(self) -> nn.Module:
        vocabulary = _vocabulary(self.recipe.data.tokenizer)
        with torch.device("meta"):
            network = family(self.recipe, vocabulary).build()
        if self.recipe.adapter.rank:
            lora.wrap(network, self.recipe.adapter)
            network.to("meta")
        precision.apply(network, self.dtype)
        return network

    @cached_property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @cached_property
    def active(self) -> int:
        """Parameters that one token meets in sampling: of the experts only those that it goes to, none that only predict further
        ahead."""
        ahead = getattr(self.network, "mtp", None)
        return round(active(self.network) - (active(ahead) if ahead is not None else 0))

    @property
    def cached(self) -> int:
        """Values that a cache keeps of one token, in all layers together; 0 where there is none."""
        if not isinstance(self.recipe, AutoregressiveRecipe):
            return 0
        model = self.recipe.model
        if model.latent.width:
            return model.depth * (model.latent.width + model.latent.rotary)
        return 2 * model.depth * (model.kv_heads or model.heads) * head_width(model)

    @cached_property
    def trained(self) -> int:
        """Parameters that are: all but a base's under its adapter."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    @cached_property
    def flops_per_token(self) -> float:
        """Forward and backward, at sequences as long as the context: the most that packing gives."""
        return flops_per_token(self.recipe, self.network)

    @property
    def tokens(self) -> int:
        """Of the whole run, at full packs."""
        return self.recipe.training.steps * self.recipe.training.packs * self.recipe.data.packing_length

    @property
    def seconds(self) -> float:
        """Of training: as asked for in minutes, or at ``UTILISATION`` of the peak."""
        return 60 * self.recipe.training.minutes or self.tokens * self.flops_per_token / (UTILISATION * self.peak)

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes by part."""
        recipe, width = self.recipe, self.dtype.itemsize
        master = 8 if self.dtype == torch.float64 else 4
        blocks = ((name, p) for name, p in self.network.named_parameters() if name.startswith(("blocks", "mtp")))
        matrices = sum(p.numel() for name, p in blocks if p.dim() >= 2 and "router" not in name)
        moments = 2 * self.trained - (matrices if recipe.optimizer.kind == "muon" else 0)
        few, rounded = bits.BYTES.get(recipe.adapter.weights, master), sum(m.weight.numel() for _, m in bits.matrices(self.network))
        head = self.network.get_parameter("head.weight")
        chunk = min(CHUNK_ELEMENTS, recipe.data.packing_length * len(head))
        gradient = master * len(head) * head.requires_grad
        heads, model_width = 1 + recipe.model.mtp.depths, head.shape[1]
        return {
            "weights": master * self.parameters + round((few - master) * rounded),
            "gradients": master * self.trained,
            "optimizer state": master * moments,
            "averaged weights": master * self.trained * (bool(recipe.training.ema) + len(recipe.training.ema_widths)),
            "activations": _activations(self.network, recipe),
            "head": (2 * width + 4) * chunk + heads * model_width * (gradient + width * recipe.data.packing_length),
        }

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    def halved(self) -> Plan | None:
        """Micro-batches of half the size, twice as many a step; None where they are as small as can be."""
        data, training = self.recipe.data, self.recipe.training
        if data.packing_length // 2 < data.context:
            return None
        data = replace(data, packing_length=data.packing_length // 2)
        return replace(self, recipe=replace(self.recipe, data=data, training=replace(training, packs=2 * training.packs)))

    @property
    def cutting(self) -> str:
        """How a step is cut, as it would be typed."""
        return f"--data.packing-length {self.recipe.data.packing_length} --training.packs {self.recipe.training.packs}"


@dataclass(frozen=True)
class ImagePlan(Plan):
    """The same for images, whose shape must be known: they are read where they are not prepared."""

    unit = "image"
    spare = "data.size, model.channels or model.layers"

    @cached_property
    def network(self) -> nn.Module:
        data, encoders = prepare_images(self.recipe.data), Encoders.of(self.recipe.data)
        classes = len(data.classes) if self.recipe.objective.conditional else 0
        network = images(self.recipe, encoders.shape(data.shape), classes, encoders.embedding).build()
        precision.apply(network, self.dtype)
        return network

    @cached_property
    def flops_per_token(self) -> float:
        return float(self.network.flops_per_sample())  # type: ignore[operator]

    @property
    def tokens(self) -> int:
        return int(self.recipe.training.steps * self.recipe.training.packs * self.recipe.data.batch)

    @cached_property
    def memory(self) -> dict[str, int]:
        master = 8 if self.dtype == torch.float64 else 4
        x = torch.zeros(1, *self.network.shape)  # type: ignore[misc]
        kept = _kept(self.network, lambda: self.network(x, Level(1.0, 1.0)))
        return {
            "weights": master * self.parameters,
            "gradients": master * self.parameters,
            "optimizer state": 2 * master * self.parameters,
            "averaged weights": master * self.parameters * (bool(self.recipe.training.ema) + len(self.recipe.training.ema_widths)),
            "activations": self.recipe.data.batch * kept,
        }

    def halved(self) -> Plan | None:
        data, training = self.recipe.data, self.recipe.training
        if data.batch < 2:
            return None
        data = replace(data, batch=data.batch // 2)
        return replace(self, recipe=replace(self.recipe, data=data, training=replace(training, packs=2 * training.packs)))

    @property
    def cutting(self) -> str:
        return f"--data.batch {self.recipe.data.batch} --training.packs {self.recipe.training.packs}"


def plan(recipe: AnyRecipe) -> Plan:
    """Probes the machine (a second) and counts. Raises UserError for a tokenizer file that cannot be read, and for streams."""
    if isinstance(recipe, StreamsRecipe):
        raise UserError("recipe", "is of the family 'streams', whose costs are not counted yet", "train a few steps: --training.steps 20")
    recipe = initial.adopted(recipe)
    dtype = precision.compute_dtype(recipe.training.dtype, device())
    kind = ImagePlan if isinstance(recipe, GaussianRecipe) else Plan
    return kind(recipe, dtype, precision.peak_flops(dtype, device()))


def described(costs: Plan, limit: int) -> Iterator[tuple[str, str]]:
    """Name and figure, for a table."""
    yield "parameters", parameters(costs.network)
    if costs.active < costs.parameters - mtp.parameters(costs.network):
        yield "  active", f"{costs.active:,} in a token"
    yield f"FLOPs per {costs.unit}", f"{costs.flops_per_token:.3g}, forward and backward"
    for part, count in costs.memory.items():
        if count:
            yield f"  {part}", size(count)
    yield "memory", f"{size(costs.total)} of {size(limit)}, beside the program"
    yield f"{costs.unit}s", "as many as fit into the time" if costs.recipe.training.minutes else f"{costs.tokens:,}"
    if costs.cached:
        yield "cache", f"{costs.cached:,} values a token, {2 * costs.cached:,} bytes in bfloat16"
    basis = (
        "as asked for" if costs.recipe.training.minutes else f"at {UTILISATION:.0%} of the {costs.peak / 1e9:,.0f} GFLOP/s measured here"
    )
    yield "time", f"{duration(costs.seconds)}, {basis}"


def parameters(network: nn.Module) -> str:
    """How many, in words; those that only predict further ahead apart."""
    count, ahead = sum(p.numel() for p in network.parameters()), mtp.parameters(network)
    return f"{count - ahead:,}" + (f", and {ahead:,} for multi-token prediction" if ahead else "")


def advice(costs: Plan, limit: int) -> str:
    """What to change for ``limit`` bytes, in words; empty where it fits. Smaller packs, more of them a step, train the same."""
    if costs.total <= limit:
        return ""
    least = costs
    while least.total > limit and (halved := least.halved()) is not None:
        least = halved
    if least.total <= limit:
        return f"{least.cutting} takes {size(least.total)} for the same step"
    with_packs = f" even with {least.cutting}" if least is not costs else ""
    return f"it takes {size(least.total)}{with_packs}: lower {costs.spare}"


def out_of_memory(recipe: AnyRecipe | None) -> UserError:
    """The answer to an allocation that failed while a recipe trained: what ``unveil plan`` would change to need less."""
    if recipe is None:
        return UserError("memory", "this machine has not enough for it", "ask for fewer at a time (--num), or close other programs")
    costs = plan(recipe)
    change = advice(costs, costs.total - costs.memory["activations"] // 2)
    return UserError("memory", f"not enough: training takes {size(costs.total)} beside the program", change)


def parse_bytes(text: str) -> int:
    """``24GiB``, ``512M``, ``8e9`` to bytes, by powers of 1024. Raises UserError."""
    number = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in UNITS else ""
    try:
        value = float(number.removesuffix(unit)) * UNITS[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError("--memory", f"got {text!r}", "give a size such as 24GiB or 512M")
    return int(value)


def machine_memory() -> int:
    """Bytes of the device that trains."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size(count: float) -> str:
    """Bytes in words: ``1.5 GiB``."""
    unit, name = next((u for u in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")) if count >= u[0]), (2**10, "KiB"))
    return f"{count / unit:.3g} {name}"


def duration(seconds: float) -> str:
    """In words: ``32.8 min``."""
    units = ((365.25 * 86400, "years"), (2 * 86400, "days"), (2 * 3600, "hours"), (60, "min"))
    lower = {"years": 365.25 * 86400, "days": 86400, "hours": 3600, "min": 60}
    name = next((name for least, name in units if seconds > least), "")
    return f"{seconds / lower[name]:,.1f} {name}" if name else f"{seconds:.0f} s"


def _vocabulary(config: TokenizerConfig) -> Vocabulary:
    if config.kind == "file":
        return Tokenizer.reopen(config.path, config).vocabulary
    size = {"bytes": 256, "characters": CHARACTERS, "bpe": config.vocabulary - len(SPECIALS)}[config.kind] + len(SPECIALS)
    return Vocabulary(size, *range(size - len(SPECIALS), size))


def _activations(network: nn.Module, recipe: TextRecipe) -> int:
    """Of a forward pass over one pack."""
    pack, context = recipe.data.packing_length, recipe.data.context
    lengths = [context] * (pack // context) + [pack % context] * (pack % context > 0)
    batch = Packed.of([torch.zeros(n, dtype=torch.int64) for n in lengths]).to("meta")
    return _kept(network, lambda: mtp.states_ahead(network, batch) if recipe.model.mtp.depths else network(batch))


def _kept(network: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes(), tensor  # alive, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(n for n, _ in kept.values())
