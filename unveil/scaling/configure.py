"""A budget to a recipe: the network whose M fits, the tokens that are left, batch and learning rate by the law."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unveil.config import TextRecipe, TransformerConfig
from unveil.errors import UserError
from unveil.scaling.cost import checked, model_scale, network_cost
from unveil.scaling.laws import Law

HEAD_WIDTHS = ((2048, 128), (256, 64), (64, 32), (32, 16), (16, 8))
"""From this width on heads are this wide; widths are multiples of it."""
WIDEST = 32768
SLENDER = 2.4
"""Layers are about sqrt(width) over this: 5 at 128, 9 at 512, 27 at 4096."""
FIT = 0.2
"""Largest relative distance of M from what was asked for; only the smallest networks are so far apart."""


@dataclass(frozen=True)
class Choice:
    """A recipe for a budget, with what it comes to in whole layers, packs and steps."""

    recipe: TextRecipe
    compute: float
    """C that was asked for."""
    scale: float
    """M, FLOPs per token."""

    @property
    def batch(self) -> int:
        """Tokens in a step."""
        return self.recipe.training.packs * self.recipe.data.packing_length

    @property
    def tokens(self) -> int:
        """D."""
        return self.recipe.training.steps * self.batch


def configure(base: TransformerConfig, scale: float, context: int) -> TransformerConfig:
    """The network like ``base`` whose M is nearest to ``scale``, among shapes neither thin nor flat.

    Raises UserError where none comes within ``FIT``.
    """
    found = min(_candidates(base, scale, context), key=lambda pair: pair[0], default=None)
    if found is None:
        least = network_cost(_shaped(base, 16, 1), context, 0).scale
        remedy = f"ask for more compute or a shorter context: the smallest network has M = {least:.2g}"
        raise UserError("--compute", f"no network has M = {scale:.3g} FLOPs per token at data.context = {context}", remedy)
    return found[1]


def for_budget(recipe: TextRecipe, compute: float, law: Law, scale: float | None = None, lr: float = 1.0, batch: float = 1.0) -> Choice:
    """The recipe with model, steps, batch and learning rate for ``compute``; everything else stays, but the optimizer is AdamW with the
    paper's settings, which its law of the learning rate is for.

    Args:
        scale: M to take in place of the law's.
        lr, batch: multiples of the law's.

    Raises UserError as ``configure``, and for a budget that is less than two steps.
    """
    checked(recipe)
    model = configure(recipe.model, law.scale(compute) if scale is None else scale, recipe.data.context)
    data = recipe.data
    wanted = batch * law.batch(compute)
    if wanted < data.packing_length:
        data = replace(data, packing_length=max(data.context, round(wanted)))
    found = replace(recipe, model=model, data=data)
    m = model_scale(found)
    packs = max(1, round(wanted / data.packing_length))
    steps = round(compute / m / (packs * data.packing_length))
    if steps < 2:
        remedy = "ask for more compute, a smaller --batch or a shorter data.context"
        raise UserError("--compute", f"{compute:.3g} is {steps} steps of {packs * data.packing_length:,} tokens at M = {m:.3g}", remedy)
    optimizer = replace(recipe.optimizer, kind="adamw", lr=lr * law.lr(compute), beta1=0.9, beta2=0.95, weight_decay=0.1, clip=1.0)
    training = replace(recipe.training, steps=steps, minutes=0.0, packs=packs)
    return Choice(replace(found, optimizer=optimizer, training=training), compute, m)


def within(flops: float, spent: Callable[[float], float]) -> float:
    """The budget C whose training takes ``flops`` in all, the vocabulary's matrices included: ``spent(C)`` says how many it takes."""
    compute = flops
    for _ in range(12):
        compute *= flops / spent(compute)
    return compute


def _candidates(base: TransformerConfig, scale: float, context: int) -> Iterator[tuple[float, TransformerConfig]]:
    """Networks within ``FIT`` and what speaks against each."""
    for width in _widths():
        slender = math.sqrt(width) / SLENDER
        if not 1 / 3 <= scale / (72 * width**2 + 12 * width * context) / max(slender, 1.5) <= 3:
            continue  # in closed form, before anything is built
        layer = network_cost(_shaped(base, width, 1), context, 0).scale
        for depth in {max(1, math.floor(scale / layer)), math.ceil(scale / layer)}:
            off = abs(math.log(depth * layer / scale))
            if off <= math.log1p(FIT):
                yield off + 0.05 * math.log2(depth / slender) ** 2, _shaped(base, width, depth)


def _widths() -> Iterator[int]:
    width = HEAD_WIDTHS[-1][0]
    while width <= WIDEST:
        yield width
        width += _head_width(width)


def _head_width(width: int) -> int:
    return next(head for least, head in HEAD_WIDTHS if width >= least)


def _shaped(base: TransformerConfig, width: int, depth: int) -> TransformerConfig:
    """``base`` in another size: its ratios of the feed-forward and of grouped heads stay as near as whole numbers come."""
    heads = width // _head_width(width)
    most = max(1, heads * base.kv_heads // base.heads)
    kv_heads = max(n for n in range(1, most + 1) if heads % n == 0) if base.kv_heads else 0
    hidden = max(64, 64 * round(base.hidden * width / base.width / 64)) if base.hidden else 0
    return replace(base, width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_width=0, hidden=hidden)
