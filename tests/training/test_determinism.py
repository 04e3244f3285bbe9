from __future__ import annotations

import json

import torch

from unveil.training import determinism


def test_every_micro_batch_has_its_own_seed_and_it_repeats() -> None:
    def draw(*place: int) -> float:
        determinism.seed_micro_batch(*place)
        return float(torch.rand(()))

    places = [(seed, step, index) for seed in (0, 1) for step in range(3) for index in range(3)]
    values = [draw(*place) for place in places]
    assert len(set(values)) == len(places)
    torch.rand(5)
    assert [draw(*place) for place in places] == values


def test_the_generator_goes_on_where_it_was() -> None:
    torch.manual_seed(1)
    torch.randn(3)
    state = json.loads(json.dumps(determinism.capture()))
    wanted = torch.randn(4)
    torch.manual_seed(9)
    determinism.restore(state)
    assert torch.equal(torch.randn(4), wanted)


def test_deterministic_algorithms_are_on_inside_and_as_before_outside() -> None:
    with determinism.deterministic(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
