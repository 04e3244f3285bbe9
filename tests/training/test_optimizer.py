from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.toy import network
from unveil.config import ExpertsConfig, OptimizerConfig
from unveil.errors import UserError
from unveil.nn.moe import Experts, Stack
from unveil.training.optimizer import Optimizer

MUON = OptimizerConfig(kind="muon")


class Fused(nn.Module):
    def __init__(self, matrices: list[Tensor]) -> None:
        super().__init__()
        self.projection = nn.Linear(6, 10, bias=False)
        self.projection.weight = nn.Parameter(torch.cat(matrices))
        self.projection.muon_slices = tuple(len(m) for m in matrices)  # type: ignore[assignment]


class Separate(nn.Module):
    def __init__(self, matrices: list[Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, len(m), bias=False) for m in matrices)
        for part, matrix in zip(self.parts, matrices, strict=True):
            part.weight = nn.Parameter(matrix.clone())


def test_a_fused_projection_moves_as_its_parts_would() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(n, 6) for n in (6, 2, 2)]
    fused, separate = Fused(matrices), Separate(matrices)
    optimizers = Optimizer(fused, MUON), Optimizer(separate, MUON)
    for _ in range(3):
        gradient = torch.randn(10, 6)
        fused.projection.weight.grad = gradient.clone()
        for part, slice_ in zip(separate.parts, gradient.split([6, 2, 2]), strict=True):
            part.weight.grad = slice_.clone()
        for optimizer in optimizers:
            optimizer.step(0.5)
    assert torch.equal(fused.projection.weight, torch.cat([part.weight for part in separate.parts]))
    whole = Fused(matrices)
    whole.projection.muon_slices = (10,)  # type: ignore[assignment]
    whole.projection.weight.grad = gradient.clone()
    Optimizer(whole, MUON).step()
    assert not torch.allclose(whole.projection.weight, fused.projection.weight, atol=1e-3)


def test_an_experts_matrix_moves_as_if_it_were_alone() -> None:
    """Gate and up of every expert apart; a router stays with AdamW."""
    torch.manual_seed(0)
    stack, alone = Stack(3, 6, 8, slices=(4, 4)), [Fused([torch.randn(4, 6), torch.randn(4, 6)]) for _ in range(3)]
    stack.weight.data = torch.stack([one.projection.weight.data for one in alone])
    optimizers = [Optimizer(model, MUON) for model in (stack, *alone)]
    for _ in range(2):
        stack.weight.grad = torch.randn(3, 8, 6)
        for one, grad in zip(alone, stack.weight.grad, strict=True):
            one.projection.weight.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step(0.5)
    torch.testing.assert_close(stack.weight, torch.stack([one.projection.weight for one in alone]), rtol=0, atol=1e-6)
    states = Optimizer(Experts(6, ExpertsConfig(routed=3, hidden=4, shared=1)), MUON)
    assert sorted({name.split("[")[0] for name in states._named}) == [
        "down.weight", "gate_up.weight", "router.weight", "shared.down.weight", "shared.gate_up.weight"
    ]  # fmt: skip
    assert "router.weight" in states._named and "down.weight[2,0]" in states._named and "gate_up.weight[2,4]" in states._named


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = network()
    optimizer = Optimizer(model, MUON)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    momentum = {name.split("[")[0] for name in state if name.endswith(".momentum_buffer")}
    assert momentum == {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    assert sum(name.startswith("blocks.0.attention.qkv") for name in state) == 3
    assert "embedding.weight.exp_avg" in state and "head.weight.exp_avg" in state


def test_adamw_is_torchs_and_decays_matrices_only() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    optimizer = Optimizer(ours, config)
    groups = [{"params": [theirs.weight], "weight_decay": 0.5}, {"params": [theirs.bias], "weight_decay": 0.0}]
    twin = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for _ in range(3):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step(0.5)
        twin.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize("config", [OptimizerConfig(), MUON])
def test_a_masked_step_changes_neither_weights_nor_state(config: OptimizerConfig) -> None:
    model = network()
    optimizer = Optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(ok=torch.tensor(True))
    before = {**model.state_dict(), **optimizer.state_dict()}
    before = {name: t.clone() for name, t in before.items()}
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step(ok=torch.tensor(False))
    after = {**model.state_dict(), **optimizer.state_dict()}
    assert all(torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("config", [OptimizerConfig(), MUON])
def test_a_loaded_state_goes_on_as_the_saved_one(config: OptimizerConfig) -> None:
    models = network(), network()
    optimizers = [Optimizer(m, config) for m in models]

    def move(which: int) -> None:
        torch.manual_seed(5)
        for p in models[which].parameters():
            p.grad = torch.randn_like(p)
        optimizers[which].step()

    move(0)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    move(0)
    move(1)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_state_of_another_network_is_refused_by_name() -> None:
    optimizer = Optimizer(nn.Linear(3, 3), OptimizerConfig())
    with pytest.raises(UserError, match=r"missing\.exp_avg"):
        optimizer.load_state_dict({"missing.exp_avg": torch.zeros(3)})
    with pytest.raises(UserError, match=r"bias\.exp_avg.*\[4\]"):
        optimizer.load_state_dict({"bias.exp_avg": torch.zeros(4)})
