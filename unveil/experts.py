"""What both families of text say of experts: the loss that balances them."""

from __future__ import annotations

import torch
from torch import nn

from unveil.config import TransformerConfig
from unveil.family import Term
from unveil.nn.packed import Packed
from unveil.nn.routing import Router


def targets(model: TransformerConfig, batch: Packed) -> dict[str, float]:
    """The denominator of ``balance``: layers with experts times documents (or packs)."""
    experts = model.experts
    layers = max(0, model.depth - experts.dense) if experts.routed else 0
    segments = batch.sample_ids_N.shape[0] if experts.balance_over == "document" else 1
    return {"balance": float(layers * segments)} if layers and experts.balance else {}


def terms(network: nn.Module, batch: Packed) -> dict[str, Term]:
    """``balance`` of the pack that ``network`` has just read in training, and a note of the choices for ``after_step``; nothing of a
    network without experts, or in evaluation.

    Measured, it is the mean over layers and documents, 1 where all are in perfect balance. In the loss it has the weight alpha times the
    number of layers: each adds its own, as in DeepSeek-V3.
    """
    routers = [m for m in network.modules() if isinstance(m, Router) and m.seen is not None]
    if not routers:
        return {}
    experts = routers[0].config
    whole = experts.balance_over == "pack"
    segment_T = torch.zeros_like(batch.tokens_T) if whole else batch.sequence_T
    segments = 1 if whole else batch.sample_ids_N.shape[0]
    sums = [found for router in routers if (found := router.take(segment_T, segments)) is not None]
    return {"balance": Term(torch.stack(sums).sum(), experts.balance * len(sums))} if experts.balance else {}
