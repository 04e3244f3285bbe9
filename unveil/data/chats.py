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
from unveil.text.chat import ChatTemplate, PlainTemplate, check
from unveil.text.chat import chat_template as template_of
from unveil.text.conversation import Answer, answers, forget

Array = np.ndarray[Any, Any]
KINDS = ("chat", "preference")
"""Of sources: their documents are conversations, which are never cut."""
SIDES = ("chosen", "rejected")
ROW = 'write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
SPAN = 4
"""Numbers that describe an answer: see ``Encoded.spans``."""


class Encoded(NamedTuple):
    """A conversation in tokens, int64 ``[T]``, without start and end tokens, but as it opens where no start token does."""

    tokens: Array
    spans: Array
    """Per answer (of a pair the preferred one and the other, end to end) its first token, the end of the message, the end of the turn, and
    the bytes of the message: int64 ``[A, 4]``."""
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


def canonical(row: Mapping[str, Any], kind: str, where: str) -> bytes:
    """A row's conversation, or a pair's prompt and two answers, as one form of JSON. Raises UserError, which names ``where`` and the key,
    for what is none."""
    pair = kind == "preference"
    if "messages" not in row and "prompt" in row and (pair or "response" in row):
        spoken = [("user", row["prompt"])] if pair else [("user", row["prompt"]), ("assistant", row["response"])]
        row = {**row, "messages": [{"role": role, "content": content} for role, content in spoken]}
    if "messages" not in row:
        remedy = 'write {"prompt": "...", "chosen": "...", "rejected": "..."}' if pair else ROW
        raise UserError(f"{where}: messages", f"is missing, the row has {', '.join(row) or 'nothing'}", f"{remedy} a line")
    try:
        check(row["messages"])
    except UserError as error:
        raise UserError(f"{where}: {error.field}", error.problem, error.remedy) from None
    kept: dict[str, Any] = {"messages": [{"role": message["role"], "content": message["content"]} for message in row["messages"]]}
    if pair:
        kept |= {side: _side(row, side, where) for side in SIDES}
        if kept["chosen"].strip() == kept["rejected"].strip():
            raise UserError(f"{where}: rejected", "is the same as chosen", "drop the row")
    elif not any(message["role"] == "assistant" for message in row["messages"][1:]):
        problem = "has no assistant turn after a user's, so there is nothing to learn"
        raise UserError(f"{where}: messages", problem, "add the answer, or drop the row")
    return json.dumps(kept).encode()


def _side(row: Mapping[str, Any], side: str, where: str) -> str:
    value = row.get(side)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing" if side not in row else f"got {value!r:.60}, wanted an answer as text"
        raise UserError(f"{where}: {side}", problem, f"write both {' and '.join(SIDES)}, or drop the row")
    return value


def contents(data: bytes) -> bytes:
    """The messages of a canonical row alone: by these two conversations are alike."""
    return text_bytes("\n".join(_texts(json.loads(data))))


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]] + [row[side] for side in SIDES if side in row]


def text_of(data: bytes, name: str, template: ChatTemplate) -> bytes:
    """A canonical row as it is written for the model. Raises UserError as ``encode``."""
    parts = _parts(template, json.loads(data), name)
    return text_bytes("".join(part.before + part.text + part.close for part in parts))


def encode(data: bytes, name: str, tokenizer: Tokenizer, template: ChatTemplate, context: int) -> Encoded | None:
    """A canonical row in tokens; its oldest turns are forgotten until it (of a pair each answer behind the prompt) fits, with a start and
    an end token, into ``context``. None where the last turn alone does not.

    Raises UserError for roles or an order that the template does not take, and for text that the tokenizer cannot keep.
    """
    row, shortened = json.loads(data), False
    while True:
        tokens, spans = _tokens(tokenizer, _parts(template, row, name))
        longest = spans[0, 0] + (spans[:, 2] - spans[:, 0]).max() if "chosen" in row else len(tokens)
        if longest + 2 <= context:
            return Encoded(tokens, spans, sum(len(text_bytes(text)) for text in _texts(row)), shortened)
        left = forget(row["messages"])
        if left is None or not ("chosen" in row or any(message["role"] == "assistant" for message in left[1:])):
            return None
        row, shortened = {**row, "messages": left}, True


def _parts(template: ChatTemplate, row: Mapping[str, Any], name: str) -> list[Answer]:
    """The answers of a conversation; or the two of a pair, the second as if nothing stood before it."""
    try:
        if "chosen" not in row:
            return answers(template, row["messages"])
        both = [answers(template, [*row["messages"], {"role": "assistant", "content": row[side]}])[-1] for side in SIDES]
        prompt = template.render(row["messages"])
        return [both[0]._replace(before=prompt), both[1]._replace(before="")]
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
