"""Conversations: rows of JSONL checked and made alike, and in tokens with the places of what is to be learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unveil.config import SourceConfig, TextDataConfig
from unveil.data.tokenizer import Tokenizer, text_bytes
from unveil.errors import UserError
from unveil.text.chat import ChatTemplate, Message, PlainTemplate, check
from unveil.text.chat import chat_template as template_of
from unveil.text.conversation import Answer, answers, forget

Array = np.ndarray[Any, Any]
KINDS = ("chat",)
"""Of sources: their documents are conversations, which are never cut."""
SPAN = 4
"""Numbers that describe an answer: see ``Encoded.spans``."""


class Encoded(NamedTuple):
    """A conversation in tokens, int64 ``[T]``, without start and end tokens, but as it opens where no start token does."""

    tokens: Array
    spans: Array
    """Per answer its first token, the end of the message, the end of the turn, and the bytes of the message: int64 ``[A, 4]``."""
    source_bytes: int
    """Of all messages."""
    shortened: bool
    """It lost its oldest turns."""


def conversations(source: SourceConfig) -> bool:
    return source.kind in KINDS


def template_for(config: TextDataConfig) -> ChatTemplate:
    """In which the recipe's conversations are written. Raises UserError for a folder that is not there."""
    if not config.template:
        return PlainTemplate()
    folder = Path(config.template)
    if not folder.is_dir():
        raise UserError("data.template", f"no folder '{config.template}'", "name the folder of a model, or leave it empty")
    return template_of(folder)


def canonical(row: Mapping[str, Any], where: str) -> bytes:
    """A row's conversation as one form of JSON. Raises UserError, which names ``where`` and the key, for what is none."""
    if "messages" not in row and {"prompt", "response"} <= row.keys():
        row = {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
    if "messages" not in row:
        remedy = 'write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]} a line'
        raise UserError(f"{where}: messages", f"is missing, the row has {', '.join(row) or 'nothing'}", remedy)
    try:
        check(row["messages"])
    except UserError as error:
        raise UserError(f"{where}: {error.field}", error.problem, error.remedy) from None
    if not any(message["role"] == "assistant" for message in row["messages"][1:]):
        problem = "has no assistant turn after a user's, so there is nothing to learn"
        raise UserError(f"{where}: messages", problem, "add the answer, or drop the row")
    kept = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    return json.dumps({"messages": kept}).encode()


def contents(data: bytes) -> bytes:
    """The messages of a canonical row alone: by these two conversations are alike."""
    return text_bytes("\n".join(message["content"] for message in json.loads(data)["messages"]))


def text_of(data: bytes, name: str, template: ChatTemplate) -> bytes:
    """A canonical row as it is written for the model. Raises UserError as ``encode``."""
    return text_bytes("".join(part.before + part.text + part.close for part in _answers(template, json.loads(data)["messages"], name)))


def encode(data: bytes, name: str, tokenizer: Tokenizer, template: ChatTemplate, context: int) -> Encoded | None:
    """A canonical row in tokens; its oldest turns are forgotten until it fits, with a start and an end token, into ``context``. None where
    the last turn alone does not.

    Raises UserError for roles or an order that the template does not take, and for text that the tokenizer cannot keep.
    """
    messages: list[Message] | None = json.loads(data)["messages"]
    shortened = False
    while messages is not None:
        found = _tokens(tokenizer, _answers(template, messages, name))
        if len(found[0]) + 2 <= context:
            size = sum(len(text_bytes(message["content"])) for message in messages)
            return Encoded(*found, size, shortened)
        messages, shortened = forget(messages), True
        if messages is not None and not any(message["role"] == "assistant" for message in messages[1:]):
            return None
    return None


def _answers(template: ChatTemplate, messages: Sequence[Message], name: str) -> list[Answer]:
    try:
        return answers(template, messages)
    except UserError as error:
        raise UserError(f"{name}: {error.field}", error.problem, error.remedy) from None


def _tokens(tokenizer: Tokenizer, parts: Sequence[Answer]) -> tuple[Array, Array]:
    """What is told, what is written and what closes a turn are tokenized apart, so that no token reaches across."""
    pieces: list[Array] = []
    spans: list[list[int]] = []
    at = 0
    for index, part in enumerate(parts):
        before = tokenizer.encode(part.before) if index else opening(tokenizer, part.before)
        text, close = tokenizer.encode(part.text), tokenizer.encode(part.close)
        first = at + len(before)
        end = first + len(text)
        at = end + len(close)
        pieces += [before, text, close]
        spans.append([first, end, at, len(text_bytes(part.content))])
    return np.concatenate(pieces).astype(np.int64), np.array(spans, dtype=np.int64)


def opening(tokenizer: Tokenizer, text: str) -> Array:
    """The first tokens of a sequence as a prompt's are, without the start token that opens every one."""
    ids = tokenizer.opened(text)
    return ids[1:] if tokenizer.opens else ids
