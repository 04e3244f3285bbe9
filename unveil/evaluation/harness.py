"""A text model as ``lm-eval`` wants it: likelihoods of continuations and of whole texts, and continuations up to a stop string.

Likelihoods are the family's own: log p itself, or the bound by the exact-l estimator with the prompt told (LLaDA, eq. 6). Texts are what
``Run.sample`` writes, so ``unveil sample`` and an evaluation share one sampler. Many requests go into one pack or one ragged batch, and
each result is the same alone: noise belongs to a request's prompt, a text's seed to its place in the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from unveil.data.tokenizer import Tokenizer
from unveil.errors import UserError, nearest
from unveil.evaluation.told import Ids, Score, Told, log_likelihoods
from unveil.text.chat import ChatTemplate

SETTINGS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "max_gen_toks": "length"}
"""What a task's ``generation_kwargs`` may set, and the sampler's name for it."""


class Harness(LM):  # type: ignore[misc]
    """The adapter.

    Args:
        run: a ``TextRun``, its sampler's settings chosen.
        score: of its family.
        template: of conversations, for tasks rendered as such.
        rows: texts written at a time.
        seed: of the first text; a text's is that plus its place among the requests.

    Greedy continuations are not decided: the second entry of a likelihood is False, and tasks that want it are for the caller to refuse.
    """

    def __init__(self, run: Any, score: Score, template: ChatTemplate, rows: int, seed: int) -> None:
        super().__init__()
        self._run, self._score, self._template, self._rows, self._seed = run, score, template, rows, seed
        self._tokenizer: Tokenizer = run.tokenizer
        self._context: int = run.recipe.data.context
        self.truncated = 0
        """Prompts that lost their beginning to fit into the context."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each continuation given its prompt. Raises UserError for a continuation longer than the context."""
        return [(value, False) for value in self._scored([self._pair(*request.args) for request in requests])]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each text, in windows that do not overlap; each but the first is told the token before it."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        values = iter(self._scored([text for texts in windows for text in texts]))
        return [sum(next(values) for _ in texts) for texts in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the run's sampler writes after each prompt, up to a string of ``until``. Raises UserError for settings it does not have."""
        answers: list[str] = []
        for settings, group in groupby(requests, key=lambda request: self._sampler(request.args[1])):
            prompts = [request.args[0] for request in group]
            for at in range(0, len(prompts), self._rows):
                part = prompts[at : at + self._rows]
                *_, last = self._run.sample(part, seed=self._seed + len(answers), **settings)
                answers += last.completion
        return answers

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            raise UserError("gen_prefix", "given with a chat template, which opens the answer itself", "leave one of them out")
        return self._template.render(chat_history)

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.digest()

    def _pair(self, prompt: str, continuation: str) -> Told:
        """White space between the two belongs to the continuation; tokens are those of the whole text where the prompt's begin it."""
        bare = prompt.rstrip()
        continuation = prompt[len(bare) :] + continuation
        told, whole = self._tokenizer.opened(bare), self._tokenizer.opened(bare + continuation)
        if len(whole) <= len(told) or not np.array_equal(whole[: len(told)], told):
            whole = np.concatenate([told, self._tokenizer.encode(continuation)])
        count = len(whole) - len(told)
        if not 0 < count < self._context:
            raise UserError("continuation", f"has {count} tokens, the context is {self._context}", "take shorter answers")
        if over := max(0, len(whole) - self._context):
            self.truncated += 1
            whole = np.concatenate([whole[:1], whole[1 + over :]])
        return _told(whole, len(whole) - count)

    def _windows(self, text: str) -> Iterator[Told]:
        tokens = np.concatenate([self._tokenizer.opened(""), self._tokenizer.encode(text)])
        for at in range(0, len(tokens) - 1, self._context - 1):
            yield _told(tokens[at : at + self._context], 1)

    def _sampler(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Settings of the sampler from a task's."""
        asked = dict(asked)
        until = asked.pop("until", None) or ()
        settings: dict[str, Any] = {"stop": (*([until] if isinstance(until, str) else until), *self._run.recipe.sampler.stop)}
        if asked.pop("do_sample", None) is False:
            asked["temperature"] = 0.0
        for name, value in asked.items():
            if name not in SETTINGS:
                raise UserError(f"generation_kwargs.{name}", "no such setting", nearest(name, SETTINGS))
            settings[SETTINGS[name]] = value
        return settings

    def _scored(self, texts: Sequence[Told]) -> list[float]:
        return log_likelihoods(texts, self._score, max(self._context, self._run.recipe.data.packing_length))


def _told(tokens: Ids, given: int) -> Told:
    """Its noise is a function of the prompt alone, so that answers to one question, if equally long, meet the same masks."""
    digest = hashlib.blake2b(tokens[:given].tobytes(), digest_size=8).digest()
    return Told.after(tokens, given, int.from_bytes(digest, "little") >> 1)
