from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from unveil.autoregressive.objective import next_token_loss, predicted, tokens_ahead
from unveil.nn.head import LogitsModel
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer

Make = Callable[..., Transformer]
LENGTHS = (5, 1, 9, 2, 5)


def sequences(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 9, (n,), generator=generator) for n in LENGTHS]


def gradient(model: Transformer, total: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)])


def test_targets_never_cross_documents() -> None:
    batch = Packed.of(sequences())
    targets, followed = tokens_ahead(batch)
    for tokens, target, mask in zip(batch.split(), batch.split(targets), batch.split(followed), strict=True):
        assert mask.tolist() == [True] * (len(tokens) - 1) + [False]
        assert target[mask].tolist() == tokens[1:].tolist()
    assert predicted(batch) == int(followed.sum()) == sum(LENGTHS) - len(LENGTHS)


def test_repeated_boundaries_change_nothing() -> None:
    batch = Packed.of(sequences())
    padded = Packed(
        batch.tokens_T,
        torch.cat([batch.cu_seqlens, batch.cu_seqlens[-1:].expand(3)]),
        batch.max_seqlen,
        batch.positions_T,
        batch.sample_ids_N,
    )
    assert predicted(padded) == predicted(batch)
    assert torch.equal(tokens_ahead(padded)[1], tokens_ahead(batch)[1])


def test_the_loss_is_the_plain_cross_entropy(network: Make) -> None:
    model, batch = network(), Packed.of(sequences())
    total, losses = next_token_loss(model, batch)
    for tokens, part in zip(batch.split(), batch.split(losses), strict=True):
        logits = model.head(model(Packed.of([tokens])))
        plain = F.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        assert torch.allclose(part[:-1], plain, rtol=0, atol=1e-12)
        assert part[-1] == 0
    assert float(total.detach()) == pytest.approx(float(losses.sum()), abs=1e-11)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (2,), (1, 2), (3, 2, 2)])
def test_packed_equals_one_by_one_whatever_else_is_in_the_pack(network: Make, order: tuple[int, ...]) -> None:
    model, every = network(), sequences()
    total, losses = next_token_loss(model, Packed.of([every[i] for i in order]))
    alone = [next_token_loss(model, Packed.of([every[i]])) for i in order]
    assert torch.allclose(losses, torch.cat([part for _, part in alone]), rtol=0, atol=1e-12)
    summed = sum(gradient(model, one) for one, _ in alone)
    assert torch.allclose(gradient(model, total), summed, rtol=0, atol=1e-11)


def test_ragged_micro_batches_add_up_to_one_large_batch(network: Make) -> None:
    model = network()
    every = sequences(1) + sequences(2)
    whole = Packed.of(every)
    parts = [Packed.of(every[a:b]) for a, b in ((0, 1), (1, 2), (2, 7), (7, 10))]
    denominator = sum(predicted(p) for p in parts)
    assert denominator == predicted(whole)
    accumulated = sum(gradient(model, next_token_loss(model, p)[0] / denominator) for p in parts)
    large = gradient(model, next_token_loss(model, whole)[0] / predicted(whole))
    assert torch.allclose(accumulated, large, rtol=0, atol=1e-12)
    means = sum(gradient(model, next_token_loss(model, p)[0] / max(predicted(p), 1)) for p in parts) / len(parts)
    assert not torch.allclose(means, large, rtol=0, atol=1e-6)  # a mean of means is something else


def test_a_pack_with_nothing_to_predict_costs_nothing(network: Make) -> None:
    model, batch = network(), Packed.of([torch.tensor([3]), torch.tensor([3])])
    total, losses = next_token_loss(model, batch)
    assert float(total.detach()) == 0 == predicted(batch) == float(losses.abs().sum())
    assert float(gradient(model, total).abs().max()) == 0


def test_any_network_of_logits_will_do() -> None:
    table = torch.randn(9, 9, dtype=torch.float64, requires_grad=True)
    batch = Packed.of(sequences())
    total, _ = next_token_loss(LogitsModel(lambda b: table[b.tokens_T]), batch)
    plain = sum(F.cross_entropy(table[s[:-1]], s[1:], reduction="sum") for s in sequences() if len(s) > 1)
    assert torch.allclose(total, torch.as_tensor(plain))
    assert all(map(torch.allclose, torch.autograd.grad(total, table), torch.autograd.grad(plain, table)))


def test_what_is_told_is_not_predicted_and_not_counted(network: Make) -> None:
    """Fine-tuning on answers: loss, denominator and gradient are those of the other tokens."""
    model, batch = network(), Packed.of(sequences())
    given = torch.rand(batch.size, generator=torch.Generator().manual_seed(1)) < 0.5
    total, losses = next_token_loss(model, batch, given_T=given)
    plain = torch.zeros((), dtype=torch.float64)
    for tokens, told in zip(batch.split(), batch.split(given), strict=True):
        each = F.cross_entropy(model.head(model(Packed.of([tokens])))[:-1], tokens[1:], reduction="none")
        plain = plain + each[~told[1:]].sum()
    count = sum(int((~told[1:]).sum()) for told in batch.split(given))
    assert predicted(batch, given_T=given) == count == int((losses != 0).sum())
    assert float(total.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    torch.testing.assert_close(gradient(model, total), gradient(model, plain), rtol=1e-9, atol=1e-12)
