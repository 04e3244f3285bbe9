"""Which noise goes with which image: the coupling of the two ends of the path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.errors import UserError

Coupling = Callable[[Tensor, Tensor], Tensor]
"""(x0 ``[B, ...]``, eps ``[B, ...]``) -> the noise for each x0. Only the noise moves, so labels stay with their images."""


def given(x0: Tensor, eps: Tensor) -> Tensor:
    """Row i with row i: independent when eps is drawn afresh, a reflow coupling when both come from ``Pairs``."""
    return eps


def optimal_transport(x0: Tensor, eps: Tensor) -> Tensor:
    """The noise permuted so that the sum of ||x0 - eps||^2 over the batch is least: the exact optimal transport between the two batches
    (Tong et al. 2024; Pooladian et al. 2023). O(B^3) on the host.

    A sample's noise then depends on its batch mates. With classes the coupling ties noise to class, which sampling does not know of: couple
    within a class, or not at all.

    Raises:
        UserError: scipy is missing.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise UserError("objective.coupling", "'optimal-transport' needs scipy, which is missing", "pip install scipy") from e
    # ||x0||^2 and ||eps||^2 are the same whatever the order: the inner product is all that is left
    cost = -(x0.flatten(1).double() @ eps.flatten(1).double().T)
    _, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return eps[torch.from_numpy(columns).to(eps.device)]


def transport_cost(x0: Tensor, eps: Tensor) -> Tensor:
    """||x0 - eps||^2 of each pair, float64 ``[B]``."""
    return (x0.double() - eps.double()).square().flatten(1).sum(1)


COUPLINGS: dict[str, Coupling] = {"independent": given, "optimal-transport": optimal_transport, "reflow": given}
"""Couplings by the name that a recipe gives them; "reflow" takes noise and data from ``Pairs``."""


class Pairs(NamedTuple):
    """Noise and the data that a flow makes of it, row by row: what reflow trains on."""

    noise: Tensor
    data: Tensor

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        save_file({"noise": self.noise.contiguous(), "data": self.data.contiguous()}, path)

    @staticmethod
    def load(path: Path) -> Pairs:
        """Read what ``save`` wrote. Raises UserError for a file that is missing, corrupt or holds no pairs."""
        remedy = "generate the pairs again"
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as e:
            raise UserError(str(path), "cannot be read", remedy) from e
        if found.keys() != {"noise", "data"} or found["noise"].shape != found["data"].shape:
            raise UserError(str(path), "holds no pairs of noise and data of one shape", remedy)
        return Pairs(found["noise"], found["data"])
