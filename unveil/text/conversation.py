"""What of a conversation a model is to learn: the answers, each given all that stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unveil.errors import UserError
from unveil.text.chat import ChatTemplate, Message

Array = np.ndarray[Any, Any]


class Answer(NamedTuple):
    """A turn of the model's in a rendered conversation."""

    before: str
    """What is told since the answer before it, up to where the model begins to write."""
    text: str
    """What it writes, up to the end of the message."""
    close: str
    """By which it ends the turn."""
    content: str
    """The message."""


def answers(template: ChatTemplate, messages: Sequence[Message]) -> list[Answer]:
    """The answers of a conversation, which ends with the last of them.

    An answer that the template writes otherwise once the conversation goes on (without its reasoning, say) is told and not learned: no
    model is asked to write it so. Raises UserError where there is none to learn, and for messages or a template that do not do.
    """
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not spoken or not spoken[-1]:
        raise UserError("messages", "has no assistant turn after a user's, so there is nothing to learn", "add the answer, or drop the row")
    whole, found, told = template.render(messages[: spoken[-1] + 1], opened=False), list[Answer](), 0
    for i in spoken:
        if not i:
            continue
        before, after = template.render(messages[:i]), template.render(messages[: i + 1], opened=False)
        content = messages[i]["content"].strip()
        if not content:
            raise UserError(f"messages[{i}].content", "is an assistant's and empty", "write the answer, or drop the row")
        if after.startswith(before) and whole.startswith(after):
            text = after[len(before) :]
            end = text.find(content) + len(content) if content in text else len(text)
            found.append(Answer(whole[told : len(before)], text[:end], text[end:], content))
            told = len(after)
        elif i == spoken[-1]:
            raise UserError("chat_template", "begins an answer otherwise than it asks for one", "mend it, or name another by data.template")
    return found


def forget(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation without its oldest turn and what answered it, never a system message; None where one turn is left."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return None if len(turns) < 2 else [*messages[: turns[0]], *messages[turns[1] :]]


def answered(tokens: Array, spans: Array, end: int, ends: int) -> tuple[Array, Array]:
    """A conversation up to its last span and ``ends`` end tokens after it; and which tokens are told (bool): all but spans and ends.

    Args:
        tokens: of the conversation, int64 ``[T]``.
        spans: where the answers begin and stop, int64 ``[A, 2]``, ascending.
    """
    stop = int(spans[-1, 1])
    given = np.ones(stop + ends, dtype=np.bool_)
    for first, last in spans.tolist():
        given[first:last] = False
    given[stop:] = False
    return np.concatenate([tokens[:stop], np.full(ends, end, dtype=tokens.dtype)]), given
