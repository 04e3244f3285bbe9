"""The autoregressive family: ``p(x) = prod_i p(x_i | x_0 .. x_{i-1})``. What hides data is the cut after each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unveil import experts
from unveil.autoregressive.infill import Tokens, rearrange
from unveil.autoregressive.objective import likelihoods, loss_ahead, next_token_loss, predicted
from unveil.autoregressive.sampler import NextTokenSampler, State, Stop
from unveil.autoregressive.speculative import SpeculativeSampler, acceptance
from unveil.config import NextTokenConfig, NextTokenSamplerConfig, TransformerConfig
from unveil.errors import UserError
from unveil.family import Noise, Request, Snapshot, Table, Term, View
from unveil.nn.head import cross_entropy
from unveil.nn.layout import Causal
from unveil.nn.mtp import states_ahead
from unveil.nn.packed import Packed
from unveil.nn.transformer import Transformer
from unveil.text.conversation import answered
from unveil.text.preference import Preference
from unveil.text.proposals import forbid
from unveil.text.vocabulary import Vocabulary


class Autoregressive:
    """Next-token training with fill-in-the-middle, cached sampling, exact likelihood.

    Args:
        vocabulary: the tokenizer's ids.
        model, objective, sampler: sections of the recipe.
        stop: ends a row while sampling (``text.stop.StopStrings``, say).

    Raises:
        UserError: a rate or a sampler setting outside its range.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        model: TransformerConfig,
        objective: NextTokenConfig,
        sampler: NextTokenSamplerConfig,
        stop: Stop | None = None,
    ) -> None:
        if not 0 <= objective.fim_rate <= 1:
            raise UserError("objective.fim_rate", f"got {objective.fim_rate}", "choose a share from 0 to 1")
        self.vocabulary, self.model, self.objective = vocabulary, model, objective
        self.preference = Preference(objective.preference.beta)
        self.sampler: Any = (SpeculativeSampler if sampler.speculate else NextTokenSampler)(vocabulary, sampler, stop)
        never = torch.tensor([i for i in vocabulary.specials if i != vocabulary.end], dtype=torch.int64)

        # Made once: a compiled head keeps one graph per function.
        def spoken(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
            return cross_entropy(forbid(logits_CV, never.to(logits_CV.device)), targets_C)

        self._spoken = spoken
        self._late = False

    def build(self) -> nn.Module:
        return Transformer(self.model, self.vocabulary.size, Causal(self.model.window))

    def transform(self, tokens: Tokens, rng: np.random.Generator) -> Tokens:
        return rearrange(tokens, self.vocabulary, self.objective.fim_rate, rng)

    def converse(self, tokens: Tokens, spans: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Every answer is learned, since none sees what follows it, and the end after the last."""
        return answered(tokens, spans, self.vocabulary.end, 1)

    def answer(self, tokens: Tokens, spans: Tokens, index: int) -> tuple[Tokens, Tokens]:
        """A conversation up to one of its answers, all else told."""
        return answered(tokens, spans[index : index + 1], self.vocabulary.end, int(index == len(spans) - 1))

    def draw(self, sample_id: int, epoch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Nothing is noised: every prefix of a sequence is a training example."""
        return {}

    def progress(self, step: int, steps: int) -> None:
        """The weight of multi-token prediction falls on the way."""
        self._late = step >= self.objective.mtp_early * steps

    versions = 1
    """Of an answer of a pair."""

    def draw_answer(self, sample_id: int, epoch: int, given: Tokens, rng: np.random.Generator) -> list[dict[str, Tokens]]:
        """An answer's likelihood needs no chance."""
        return [{}]

    def targets(self, batch: Packed, noise: Noise) -> dict[str, float]:
        if self.preference.beta:
            return self.preference.targets(noise)
        given_T = noise.get("given")
        ahead = {name: float(predicted(batch, distance, given_T)) for distance, name in enumerate(self._terms, start=1)}
        return {**ahead, **experts.targets(self.model, batch)}

    def loss(self, model: nn.Module, batch: Packed, noise: Noise) -> dict[str, Term]:
        """``nll``: nats over all tokens but the first of each sequence and those told. ``mtp1`` and on: of depth k of multi-token
        prediction, over all but the first k + 1, at ``1 / depths`` of its weight (DeepSeek-V3, eq. 25). ``balance``, if there are
        experts. Of pairs, what ``text.preference`` says."""
        if self.preference.beta:
            terms = self.preference.terms(lambda network: likelihoods(network, batch, noise["given"]), model, noise)
            return {name: Term(*term) for name, term in terms.items()}
        given_T = noise.get("given")
        if not (depths := self.model.mtp.depths):
            return {"nll": Term(next_token_loss(model, batch, given_T=given_T)[0]), **experts.terms(model, batch)}
        weight = (self.objective.mtp_late_weight if self._late else self.objective.mtp_weight) / depths
        states = zip(self._terms, states_ahead(model, batch), strict=True)
        ahead = {
            name: Term(loss_ahead(model.head, hidden_TD, batch, distance, given_T=given_T)[0], weight if distance > 1 else 1.0)
            for distance, (name, hidden_TD) in enumerate(states, start=1)
        }
        return {**ahead, **experts.terms(model, batch)}

    @property
    def _terms(self) -> list[str]:
        """By the distance they look ahead."""
        return ["nll", *(f"mtp{k}" for k in range(1, self.model.mtp.depths + 1))]

    def begin(self, model: nn.Module, requests: Sequence[Request]) -> State:
        return self.sampler.begin(model, requests)

    def step(self, model: nn.Module, state: State) -> Snapshot:
        return self.sampler.step(model, state)

    @torch.no_grad()
    def log_likelihood(
        self, model: nn.Module, batch: Packed, draws: int, seed: int, counted_T: Tensor | None = None, given_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Exact, in one pass: the standard error is 0 and ``draws`` and ``seed`` have no say, nor has ``given_T``: what stands before a
        token is told.

        The law is that of the sampler at temperature 1: special tokens but the end have probability 0 as a continuation, so a counted
        sentinel costs minus infinity. A sequence's first token is given; ``counted_T`` (bool) chooses among the others, default all.
        """
        _, losses_T = next_token_loss(model, batch, self._spoken)
        if counted_T is not None:
            losses_T = torch.where(counted_T.roll(-1), losses_T, 0.0)
        total_N = torch.zeros(len(batch.sample_ids_N), dtype=torch.float64, device=losses_T.device)
        total_N.index_add_(0, batch.sequence_T, -losses_T.double())
        return total_N, torch.zeros_like(total_N)

    def views(self, run: Any) -> list[View]:
        """The load of experts, if there are any; and what the depths of multi-token prediction are good for, in texts from their
        beginning: greedy, and drawn as the recipe says."""
        found: list[View] = experts.views(run.metrics) if self.model.experts.routed else []
        if not (depths := self.model.mtp.depths):
            return found
        length, rows = min(run.recipe.sampler.length, run.recipe.data.context - 1), []
        for way, settings in (("greedy", {"temperature": 0.0, "num": 1}), ("drawn", {"num": 4})):
            *_, last = run.sample(length=length, speculate=depths, **settings)
            new, passes = sum(int((row.committed_at > 0).sum()) for row in last.rows), sum(row.evaluations for row in last.rows)
            rows.append((way, f"{new / passes:.2f}", *(f"{share:.0%}" for share in acceptance(last.rows))))
        columns = ("texts", "tokens for one pass", *(f"accepted, {k} ahead" for k in range(1, depths + 1)))
        return [*found, Table("Drafts of multi-token prediction", columns, rows)]
