"""All weights of a network under one optimizer: AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unveil.config import OptimizerConfig
from unveil.errors import UserError
from unveil.training.muon import Muon


class _Slice(NamedTuple):
    """Rows of a fused projection, or of one expert's: a parameter of its own on the same storage."""

    name: str
    view: nn.Parameter
    whole: nn.Parameter
    place: tuple[int | slice, ...]


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) in its fused form, and for ``kind = "muon"`` Muon on the matrices of the blocks.

    A matrix of the blocks is a 2-D weight that is neither an embedding's nor the head's. A module with a ``muon_slices`` attribute holds
    several projections in the rows of its ``weight``; each is orthogonalised alone, as if it were a matrix of its own, and so is each
    expert's matrix in a 3-D weight. One whose ``muon_slices`` are empty (a router) stays with AdamW. Weight decay acts on matrices only.

    Args:
        model: on its device and in its dtype; the parameters keep their storage from here on.
        config: rates and decays.
        dtype: of Muon's Newton-Schulz iteration.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self._slices = list(_slices(model)) if config.kind == "muon" else []
        sliced = {id(s.whole) for s in self._slices}
        rest = {name: p for name, p in named.items() if id(p) not in sliced}
        groups = [
            {"params": [p for p in rest.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest.values() if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (config.beta1, config.beta2)
        self._parts: list[tuple[torch.optim.AdamW | Muon, float]] = []
        if rest:
            adamw = torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas, config.eps, fused=True)
            self._parts.append((adamw, config.lr))
        if self._slices:
            options = {"lr": config.matrix_lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
            self._parts.append((Muon([s.view for s in self._slices], dtype, **options), config.matrix_lr))
        self._named = {**rest, **{s.name: s.view for s in self._slices}}

    def step(self, multiplier: float = 1.0, ok: Tensor | None = None) -> None:
        """One update at ``multiplier`` times the learning rates.

        ``ok`` is a boolean scalar on the device; where it is false neither weights nor state change, whatever the gradients hold.
        """
        for s in self._slices:
            s.view.grad = None if s.whole.grad is None else s.whole.grad[s.place]
        for part, lr in self._parts:
            vars(part)["found_inf"] = None if ok is None else (~ok).float()
            for group in part.param_groups:
                group["lr"] = lr * multiplier
            part.step()

    def zero_grad(self) -> None:
        for p in (*self.parameters, *(s.view for s in self._slices)):
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by ``<parameter>.<state>``; the parameter of a slice is ``<parameter>[<first row>]``, or ``[<expert>,<first row>]``."""
        states = {name: state for name, p in self._named.items() for part, _ in self._parts if (state := part.state.get(p))}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``; an empty one is a fresh start. Raises UserError for a name or a shape of another network."""
        for part, _ in self._parts:
            part.state.clear()
        owners = {id(p): part for part, _ in self._parts for group in part.param_groups for p in group["params"]}
        for full, value in state.items():
            name, _, key = full.rpartition(".")
            p = self._named.get(name)
            if p is None or (key != "step" and value.shape != p.shape):
                problem = f"state '{full}' of shape {list(value.shape)} fits no parameter"
                raise UserError("optimizer state of the checkpoint", problem, "go on with the recipe it was saved with")
            owners[id(p)].state[p][key] = value.to(p.device, copy=True)


def _slices(model: nn.Module) -> Iterator[_Slice]:
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        outer = isinstance(module, nn.Embedding) or path.rpartition(".")[2] in ("head", "lm_head")
        if outer or not isinstance(weight, nn.Parameter) or weight.dim() not in (2, 3) or not weight.requires_grad:
            continue
        rows = getattr(module, "muon_slices", (weight.shape[-2],))
        starts = [sum(rows[:i]) for i in range(len(rows))]
        for start, count in zip(starts, rows, strict=True):
            taken = slice(start, start + count)
            if weight.dim() == 2:
                yield _Slice(f"{path}.weight[{start}]", nn.Parameter(weight.data[taken]), weight, (taken,))
                continue
            for expert in range(len(weight)):
                yield _Slice(f"{path}.weight[{expert},{start}]", nn.Parameter(weight.data[expert, taken]), weight, (expert, taken))
