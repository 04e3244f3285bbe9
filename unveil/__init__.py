"""Train, sample, evaluate and ship generative models that uncover data step by step.

``unveil.load`` and ``unveil.train`` are all of the run API; every part below works alone with a person's own ``nn.Module``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unveil.errors import UserError

if TYPE_CHECKING:
    from unveil.run import Run, load, train

__all__ = ["Run", "UserError", "load", "train"]


def __getattr__(name: str) -> Any:
    """``Run``, ``load`` and ``train`` when they are asked for: they import torch, which takes a second."""
    if name in ("Run", "load", "train"):
        from unveil import run

        return getattr(run, name)
    raise AttributeError(f"module 'unveil' has no attribute {name!r}")
