from __future__ import annotations

from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import UserError
from unveil.gaussian.coupling import COUPLINGS, Pairs, given, optimal_transport, transport_cost


def batch(count, shape=(2, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, *shape, generator=generator).unbind(0)


@pytest.mark.parametrize("seed", range(5))
def test_optimal_transport_is_the_best_of_all_permutations(seed):
    x0, eps = batch(6, seed=seed)
    coupled = optimal_transport(x0, eps)
    costs = [transport_cost(x0, eps[list(order)]).sum() for order in permutations(range(6))]
    torch.testing.assert_close(transport_cost(x0, coupled).sum(), min(costs))
    assert transport_cost(x0, coupled).sum() <= transport_cost(x0, given(x0, eps)).sum()
    assert sorted(coupled.flatten(1).tolist()) == sorted(eps.flatten(1).tolist())


def test_in_one_dimension_it_sorts():
    x0, eps = batch(50, shape=(1,))
    coupled = optimal_transport(x0, eps)
    assert torch.equal(coupled[x0.argsort(0).squeeze()], eps.sort(0).values)


def test_names():
    x0, eps = batch(3)
    assert COUPLINGS["independent"](x0, eps) is eps
    assert COUPLINGS["reflow"](x0, eps) is eps


def test_pairs_come_back_as_they_were(tmp_path):
    pairs = Pairs(*batch(4))
    pairs.save(tmp_path / "pairs.safetensors")
    again = Pairs.load(tmp_path / "pairs.safetensors")
    assert torch.equal(again.noise, pairs.noise)
    assert torch.equal(again.data, pairs.data)


def test_a_file_without_pairs_is_named(tmp_path):
    path = tmp_path / "pairs.safetensors"
    with pytest.raises(UserError, match=r"pairs\.safetensors"):
        Pairs.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(UserError, match="cannot be read"):
        Pairs.load(path)
    save_file({"noise": torch.zeros(2, 3), "data": torch.zeros(3, 2)}, path)
    with pytest.raises(UserError, match="no pairs"):
        Pairs.load(path)
