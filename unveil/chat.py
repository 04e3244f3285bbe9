"""A conversation in the terminal: turns are rendered by a template, and the oldest are forgotten when the context is full."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from unveil.errors import UserError
from unveil.text.chat import ChatTemplate, Message, chat_template
from unveil.text.conversation import forget
from unveil.text_run import TextRun
from unveil.watch import printable

MINIMUM = 16
"""Tokens that an answer needs at the least, where the sampler may write as many."""


def talk(run: TextRun, seed: int = 0, ask: Callable[[str], str] = input, say: Callable[[str], None] = print) -> None:
    """Read turns from ``ask`` and answer through ``say`` until an empty line or the end of the input. Turn i has seed ``seed + i``."""
    template, messages = chat_template(run.folder), list[Message]()
    for turn in count(seed):
        if not (text := _asked(ask)):
            return
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": reply(run, template, messages, turn)})
        say(printable(messages[-1]["content"]))


def reply(run: TextRun, template: ChatTemplate, messages: list[Message], seed: int) -> str:
    """The model's next turn. Drops the oldest turns from ``messages`` (never a system message) until the rest leaves room to answer.

    Raises UserError where the last message alone is too long.
    """
    sampler, context = run.recipe.sampler, run.recipe.data.context
    while True:
        prompt = template.render(messages)
        room = context - 1 - len(run.tokenizer.encode(prompt))
        if room >= min(MINIMUM, sampler.length):
            *_, last = run.sample(prompt, seed=seed, stop=(*template.stop, *sampler.stop), length=min(sampler.length, room))
            return str(last.completion).strip()
        if (left := forget(messages)) is None:
            raise UserError("message", f"leaves {max(room, 0)} tokens of a context of {context} for the answer", "shorten it")
        messages[:] = left


def _asked(ask: Callable[[str], str]) -> str:
    try:
        return ask("> ").strip()
    except EOFError:
        return ""
