"""The weights of a network by name, and the strict comparison with what a file holds."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from unveil.errors import UserError


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, detached but not copied; a shared (tied) one once, under its first name."""
    seen: set[int] = set()
    named: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor.detach()
    return named


def trained(model: nn.Module) -> dict[str, Tensor]:
    """``weights`` without the parameters that are frozen."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in weights(model).items() if name not in frozen}


def check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the first weight of ``source`` that is missing, left over or of another shape."""
    remedy = "it belongs to a different network: use the recipe it was trained with"
    for name, tensor in wanted.items():
        if name not in found:
            raise UserError(source, f"weight '{name}' is missing", remedy)
        if found[name].shape != tensor.shape:
            raise UserError(source, f"weight '{name}' has shape {list(found[name].shape)}, wanted {list(tensor.shape)}", remedy)
    if extra := sorted(found.keys() - wanted.keys()):
        raise UserError(source, f"weight '{extra[0]}' is not one of the network's ({len(extra)} such)", remedy)


def assign(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Copy ``found`` into the storage of ``wanted`` after ``check``."""
    check(found, wanted, source)
    for name, tensor in wanted.items():
        tensor.copy_(found[name])
