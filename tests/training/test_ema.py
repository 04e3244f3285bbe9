from __future__ import annotations

import pytest
import torch
from torch import nn

from unveil.errors import UserError
from unveil.training.ema import Average, warm


def test_average_is_the_recursion_with_a_warm_decay() -> None:
    model = nn.Linear(2, 2).double()
    average = Average(model, warm(0.5))
    wanted = model.weight.detach().clone()
    for n in range(12):
        with torch.no_grad():
            model.weight.normal_()
        average.update()
        decay = min(0.5, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.state_dict()["weight"], wanted, rtol=1e-12, atol=0)


def test_swapped_shows_the_average_and_gives_the_weights_back_with_their_storage() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, warm(0.9))
    start, storage = model.weight.detach().clone(), model.weight.data_ptr()
    with torch.no_grad():
        model.weight.add_(1.0)
    with average.swapped():
        assert torch.equal(model.weight, start)
    assert torch.equal(model.weight, start + 1)
    assert model.weight.data_ptr() == storage
    with pytest.raises(KeyError), average.swapped():
        raise KeyError
    assert model.weight.data_ptr() == storage


def test_without_decay_the_weights_are_the_models_own() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, warm(0.0))
    average.update()
    with average.swapped(), torch.no_grad():
        model.weight.fill_(3.0)
    assert bool((model.weight == 3).all()) and average.state_dict() == {}


def test_a_state_of_another_network_is_refused() -> None:
    average = Average(nn.Linear(2, 2), warm(0.9))
    with pytest.raises(UserError, match="bias"):
        average.load_state_dict({"weight": torch.zeros(2, 2)}, 1)
    with pytest.raises(ValueError, match=r"1\.5"):
        warm(1.5)
