"""What both families of text say of experts: the loss that balances them, and how their load is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from unveil.config import TransformerConfig
from unveil.family import HeatMap, Term, View
from unveil.nn.packed import Packed
from unveil.nn.routing import Router

COLUMNS = 60
"""Of a heat map at the most; rows between are added up."""
NAMED = "load/violation "
"""Before the name of a layer's router, in a row of metrics."""
NOTE = "A row is an expert, a column a stretch of training: the tokens that went to it, relative to the mean of its layer. None is dropped."


def targets(model: TransformerConfig, batch: Packed) -> dict[str, float]:
    """The denominator of ``balance``: layers with experts times documents (or packs)."""
    experts = model.experts
    layers = max(0, model.depth + model.mtp.depths - experts.dense) if experts.routed else 0
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


def views(metrics: Sequence[Mapping[str, Any]]) -> list[View]:
    """The load of every expert over time, relative to the mean of its layer, out of a run's rows of ``load/counts``."""
    rows = [row for row in metrics if "load/counts" in row]
    if not rows:
        return []
    parts = np.array_split(np.arange(len(rows)), min(len(rows), COLUMNS))
    names = [key.removeprefix(NAMED) for key in rows[0] if key.startswith(NAMED)]
    panels = {}
    for layer, name in enumerate(names):
        counts = np.array([np.sum([rows[i]["load/counts"][layer] for i in part], axis=0) for part in parts], dtype=np.float64)
        relative = counts / np.maximum(counts.mean(axis=1, keepdims=True), 1.0)
        panels[".".join(name.split(".")[:2])] = relative.T.round(3).tolist()
    return [HeatMap("Load of every expert", panels, [float(rows[part[-1]]["tokens"]) for part in parts], "tokens seen", "experts", NOTE)]
