from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unveil.nn import head as head_module
from unveil.nn.head import Head, LogitsModel, cross_entropy
from unveil.nn.packed import Packed


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]:
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 3 * 11)  # three tokens at a time: ten tokens end in a ragged chunk
    torch.manual_seed(0)
    head = Head(4, 11).double()
    torch.nn.init.normal_(head.weight)
    return (
        head,
        torch.randn(10, 4, dtype=torch.float64, requires_grad=True),
        torch.randint(0, 11, (10,)),
        torch.rand(10, dtype=torch.float64),
    )


def test_chunks_equal_the_plain_head_in_value_and_gradient(parts: tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    head, hidden, targets, weights = parts
    total, losses = head.reduce(hidden, cross_entropy, weights, targets)
    plain = F.cross_entropy(hidden @ head.weight.T, targets, reduction="none")
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad(total / 7, (hidden, head.weight))
    theirs = torch.autograd.grad((plain * weights).sum() / 7, (hidden, head.weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_any_function_of_the_logits_has_its_gradient(parts: tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    head, hidden, targets, weights = parts

    def entropy_beside(logits: torch.Tensor, t: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(-1)
        return scale * (log_p.exp() * log_p).sum(-1) - log_p.gather(-1, t[:, None])[:, 0]

    scale = torch.linspace(0, 1, 10, dtype=torch.float64)
    total, _ = head.reduce(hidden, entropy_beside, weights, targets, scale)
    plain = (entropy_beside(hidden @ head.weight.T, targets, scale) * weights).sum()
    for a, b in zip(torch.autograd.grad(total, (hidden, head.weight)), torch.autograd.grad(plain, (hidden, head.weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_a_chunk_of_logits_is_alive(parts: tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    head, hidden, targets, weights = parts
    seen: list[int] = []

    def spy(logits: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return cross_entropy(logits, t)

    head.reduce(hidden, spy, weights, targets)
    assert seen == [3, 3, 3, 1]


def test_no_gradient_is_formed_where_none_is_wanted(parts: tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    head, hidden, targets, weights = parts
    with torch.no_grad():
        total, _ = head.reduce(hidden, cross_entropy, weights, targets)
    assert not total.requires_grad


def test_a_network_of_ones_own_serves_as_well() -> None:
    table = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    model = LogitsModel(lambda batch: table[batch.tokens_T])
    batch = Packed.of([torch.tensor([0, 1, 2])])
    targets, weights = torch.tensor([1, 2, 3]), torch.ones(3, dtype=torch.float64)
    total, losses = model.head.reduce(model(batch), cross_entropy, weights, targets)
    torch.testing.assert_close(losses, F.cross_entropy(table[:3], targets, reduction="none").detach())
    (gradient,) = torch.autograd.grad(total, table)
    assert gradient[3:].abs().sum() == 0 and gradient[:3].abs().sum() > 0


def test_no_tokens_give_a_gradient_of_zero(parts: tuple[Head, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    head, hidden, targets, weights = parts
    total, _ = head.reduce(hidden[:0], cross_entropy, weights[:0], targets[:0])
    (gradient,) = torch.autograd.grad(total, head.weight)
    assert total == 0 and not gradient.any()
