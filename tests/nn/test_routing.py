"""The gate: DeepSeek's own numbers, ties, groups, the bias and the balance of the load, each against what it should be on paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unveil.config import ExpertsConfig
from unveil.nn.routing import Router, Routing, balance, choose, highest

CASES = ("v3", "v3_nogroup", "softmax_groups", "v3_bias_dominant")


def router(width: int = 6, **switches: object) -> Router:
    torch.manual_seed(0)
    made = Router(width, ExpertsConfig(**{"routed": 8, **switches})).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(made.weight)
    return made


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_deepseeks_own_choices_and_weights(case: str, data_dir: Path) -> None:
    stored = np.load(data_dir / "golden" / "dsv3_moe.npz")
    given = json.loads(str(stored["config"]))["cases"][case]
    sigmoid = given["score_func"] == "sigmoid"
    config = ExpertsConfig(
        routed=given["n_routed_experts"],
        top_k=given["n_activated_experts"],
        gate="sigmoid" if sigmoid else "softmax",
        groups=given["n_expert_groups"],
        kept_groups=given["n_limited_groups"],
        normalise=sigmoid,
        scale=given["route_scale"],
        bias=given["bias"],
    )
    ours = Router(24, config)
    ours.weight.copy_(torch.from_numpy(stored[f"inputs.{case}.weight"]))
    if ours.bias is not None:
        ours.bias.copy_(torch.from_numpy(stored[f"inputs.{case}.bias"]))
    chosen, weights, _ = ours(torch.from_numpy(stored[f"inputs.{case}.x"]))
    assert torch.equal(chosen, torch.from_numpy(stored[f"outputs.{case}.indices"]))
    torch.testing.assert_close(weights, torch.from_numpy(stored[f"outputs.{case}.weights"]), rtol=0, atol=1e-6 * config.scale)


def test_of_equal_scores_the_lowest_index_comes_first() -> None:
    assert highest(torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]]), 4).tolist() == [[1, 3, 4, 0]]
    config = ExpertsConfig(routed=8, top_k=3, groups=4, kept_groups=2)
    assert choose(torch.full((300, 8), 0.5), None, config).unique(dim=0).tolist() == [[0, 1, 2]]


def test_an_excluded_group_stays_out_however_low_the_others_are() -> None:
    """Biases below 0 take every score of the kept group under that of an expert whose score would be set to 0."""
    config = ExpertsConfig(routed=4, top_k=2, groups=2, kept_groups=1)
    bias = torch.tensor([-3.0, -3.1, -9.0, -9.0])
    assert set(choose(torch.tensor([[0.2, 0.3, 0.9, 0.9]]), bias, config)[0].tolist()) == {0, 1}


def test_a_groups_score_is_its_two_best_or_its_best() -> None:
    scores = torch.tensor([[0.9, 0.0, 0.6, 0.5]])
    for gate, kept in (("sigmoid", {2, 3}), ("softmax", {0, 1})):
        config = ExpertsConfig(routed=4, top_k=2, groups=2, kept_groups=1, gate=gate)  # type: ignore[arg-type]
        assert set(choose(scores, None, config)[0].tolist()) == kept


def test_the_bias_chooses_and_does_not_weigh() -> None:
    plain, biased = router(scale=2.5), router(scale=2.5)
    assert biased.bias is not None
    biased.bias[:] = torch.tensor([5.0, 5.0, 0, 0, 0, 0, 0, 0])
    x = torch.randn(9, 6, dtype=torch.float64)
    chosen, weights, scores = biased(x)
    assert {tuple(sorted(row)) for row in chosen.tolist()} == {(0, 1)}
    assert not torch.equal(plain(x).chosen_TK, chosen)
    wanted = 2.5 * scores.gather(1, chosen) / scores[:, :2].sum(-1, keepdim=True)
    torch.testing.assert_close(weights, wanted, rtol=1e-14, atol=0)
    torch.testing.assert_close(weights.sum(-1), torch.full((9,), 2.5, dtype=torch.float64))


def test_a_step_moves_the_bias_by_the_sign_of_what_is_missing() -> None:
    made = router(bias_rate=0.01)
    assert made.bias is not None
    made.train()
    made(torch.randn(50, 6, dtype=torch.float64))
    made.take(torch.zeros(50, dtype=torch.int64), 1)
    counts = made.counts.clone()
    assert int(counts.sum()) == 100
    change = 0.01 * torch.sign(counts.double().mean() - counts)
    made.after_step(counts, torch.tensor(False))
    assert not made.bias.any() and not made.counts.any()
    made.after_step(counts, torch.tensor(True))
    torch.testing.assert_close(made.bias, change - change.mean(), rtol=0, atol=1e-17)
    # those that were over the mean lose against those that were under it, whatever is added to all
    torch.testing.assert_close(made.bias[:, None] - made.bias, change[:, None] - change, rtol=0, atol=1e-16)
    frozen = router(bias_rate=0.0)
    frozen.after_step(counts, torch.tensor(True))
    assert frozen.bias is not None and not frozen.bias.any()


def test_the_bias_evens_out_a_load_that_the_scores_would_not() -> None:
    made = router(bias_rate=0.005, top_k=1).eval()
    x = 0.5 * torch.randn(1000, 6, dtype=torch.float64) + 0.3 * made.weight[0].detach()

    def violation() -> float:
        counts = torch.bincount(made(x).chosen_TK.flatten(), minlength=8)
        made.after_step(counts, torch.tensor(True))
        return float(counts.max() / counts.double().mean() - 1)

    found = [violation() for _ in range(60)]
    assert found[0] > 1.0 and max(found[-5:]) < 0.2


def test_only_the_last_forward_in_training_is_counted_and_once() -> None:
    made, x = router(), torch.randn(5, 6, dtype=torch.float64)
    segment = torch.zeros(5, dtype=torch.int64)
    made.eval()
    made(x)
    assert made.take(segment, 1) is None and not made.counts.any()
    made.train()
    made(x)
    assert made.take(segment, 1) is not None and made.take(segment, 1) is None
    assert int(made.counts.sum()) == 10


def test_balance_is_one_where_load_and_scores_are_even() -> None:
    chosen = torch.tensor([[0, 1], [2, 3], [3, 2], [1, 0]])
    even = torch.full((4, 4), 0.3, dtype=torch.float64)
    for segment, segments in ((torch.zeros(4, dtype=torch.int64), 1), (torch.tensor([0, 0, 1, 1]), 2)):
        assert float(balance(even, chosen, segment, segments)) == pytest.approx(segments, abs=1e-15)
    # all to one of four: f_i P_i is 4 at most
    sure = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    assert float(balance(sure, torch.tensor([[0]]), torch.tensor([0]), 1)) == pytest.approx(4.0)


def test_balance_of_a_pack_is_the_sum_of_its_documents_by_the_papers_formula() -> None:
    torch.manual_seed(0)
    lengths, experts, top_k = [3, 7, 1], 5, 2
    scores = torch.rand(11, experts, dtype=torch.float64, requires_grad=True)
    chosen = highest(scores.detach(), top_k)
    total = torch.zeros((), dtype=torch.float64)
    start = 0
    for length in lengths:
        for i in range(experts):
            picks, share = 0.0, torch.zeros((), dtype=torch.float64)
            for t in range(start, start + length):
                picks += float(i in chosen[t].tolist())
                share = share + scores[t, i] / scores[t].sum()
            total = total + experts / (top_k * length) * picks * share / length
        start += length
    segment = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    found = balance(scores, chosen, segment, 3)
    torch.testing.assert_close(found, total, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, scores), torch.autograd.grad(total, scores), rtol=0, atol=1e-15)


def test_streams_that_follow_one_another_belong_to_the_same_documents() -> None:
    made = router()
    once = torch.rand(6, 8, dtype=torch.float64)
    segment = torch.tensor([0, 0, 0, 0, 1, 1])
    made.seen = Routing(highest(once, 2).repeat(2, 1), torch.ones(12, 2), once.repeat(2, 1))
    found = made.take(segment, 2)
    assert found is not None
    torch.testing.assert_close(found, balance(once, highest(once, 2), segment, 2), rtol=1e-14, atol=0)
