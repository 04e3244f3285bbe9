"""Chat templates: a list of messages to the text a model continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from unveil.errors import UserError, nearest

TEMPLATE = "chat_template.jinja"
Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``."""


class ChatTemplate(Protocol):
    stop: tuple[str, ...]
    """Strings at which the model's turn is over, beside the end token."""

    source: str
    """In Jinja; empty for the plain one."""
    specials: Mapping[str, str]
    """Texts of special tokens that it names."""

    def render(self, messages: Sequence[Message], opened: bool = True) -> str:
        """The conversation, up to where the model's turn begins; without ``opened`` up to where its last turn ends. Raises UserError for
        messages that it cannot render."""

    def save(self, folder: Path) -> None:
        """Write it where ``chat_template`` finds it."""


def check(messages: Sequence[Message]) -> None:
    """Raises UserError unless ``messages`` is a non-empty list of mappings that each have a ``role`` and a ``content``, both text."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UserError("messages", f"got {messages!r:.60}", 'give a list such as [{"role": "user", "content": "Hello"}]')
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise UserError(f"messages[{index}]", f"has no {key}: {message!r:.80}", 'give each {"role": "user", "content": "..."}')


_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class PlainTemplate:
    """For a model that was never taught a template: a transcript, which any language model can continue.

    A turn is over where the next one would begin.
    """

    stop: tuple[str, ...] = ("\nUser:", "\nSystem:")
    source = ""
    specials: Mapping[str, str] = MappingProxyType({})

    def render(self, messages: Sequence[Message], opened: bool = True) -> str:
        check(messages)
        for index, message in enumerate(messages):
            if message["role"] not in _NAMES:
                raise UserError(f"messages[{index}].role", f"got '{message['role']}'", nearest(message["role"], _NAMES))
        turns = [f"{_NAMES[m['role']]}: {m['content'].strip()}\n" for m in messages]
        return "".join(turns) + "Assistant:" * opened

    def save(self, folder: Path) -> None:
        """It is what a folder without a template has."""


class HeaderTemplate:
    """LLaDA's turns, each after a header with its role; the template that is shipped with its weights does not open the answer's turn."""

    stop: tuple[str, ...] = ("<|eot_id|>",)
    source = (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\\n\\n' }}{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
    )
    specials: Mapping[str, str] = MappingProxyType({})

    def render(self, messages: Sequence[Message], opened: bool = True) -> str:
        check(messages)
        turns = [f"{self._header(m['role'])}{m['content'].strip()}<|eot_id|>" for m in messages]
        return "".join(turns) + self._header("assistant") * opened

    def save(self, folder: Path) -> None:
        JinjaTemplate(self.source).save(folder)

    @staticmethod
    def _header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}{{ '\\n' }}{{ message.content }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
"""Qwen's turns, which Dream, DiffuCoder and SDAR took over."""


class JinjaTemplate:
    """A template as published with a model, in Jinja, with the variables and functions that ``transformers`` gives it.

    Others wrote it, so it runs in Jinja's immutable sandbox: no attribute of Python's own, no change to what it is given.

    Args:
        source: the template.
        specials: texts of special tokens by name (``bos_token``, ``eos_token``, ...).

    Raises:
        UserError: the template does not parse.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, source: str, specials: Mapping[str, str] | None = None) -> None:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = raise_exception
        self._error = jinja2.TemplateError
        self.source: str = source
        self.specials: Mapping[str, str] = dict(specials or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError("chat_template", f"does not parse: {error}", "mend it, or remove it to chat in plain text") from None

    def render(self, messages: Sequence[Message], opened: bool = True) -> str:
        check(messages)
        try:
            return self._template.render(messages=[dict(m) for m in messages], add_generation_prompt=opened, **self.specials)
        except (self._error, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError("chat_template", f"does not take these messages: {error}", "change their roles or order") from None

    def save(self, folder: Path) -> None:
        """Beside what the folder's ``tokenizer_config.json`` says already."""
        (folder / TEMPLATE).write_text(self.source, encoding="utf-8")
        if self.specials:
            path = folder / "tokenizer_config.json"
            path.write_text(json.dumps({**_settings(path), **self.specials}, indent=2) + "\n", encoding="utf-8")


def chat_template(folder: Path) -> ChatTemplate:
    """The template of a model's folder: LLaDA's own, ``chat_template.jinja``, that of ``tokenizer_config.json``, ``CHATML`` where its
    tokens are known, or else the plain one.

    Raises UserError for a file that is no JSON object, or where several templates are named and none is ``default``.
    """
    if _settings(folder / "config.json").get("model_type") == "llada" and "<|start_header_id|>" in _added(folder):
        return HeaderTemplate()
    path = folder / "tokenizer_config.json"
    config = _settings(path)
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        if "default" not in named:
            raise UserError(str(path), f"names the templates {', '.join(sorted(named))}", "name the one to use 'default'")
        source = named["default"]
    alone = folder / TEMPLATE
    if alone.is_file():
        source = alone.read_text(encoding="utf-8")
    if not source and "<|im_start|>" in _added(folder):
        source = CHATML
    if not source:
        return PlainTemplate()
    return JinjaTemplate(source, {name: text for name, value in config.items() if name.endswith("_token") and (text := _text(value))})


def _settings(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none. Raises UserError for anything else in it."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(str(path), f"is not JSON: {error}", "restore the file") from None
    if not isinstance(config, dict):
        raise UserError(str(path), f"holds a {type(config).__name__}", "restore the file: it is a JSON object")
    return config


def _added(folder: Path) -> set[str]:
    """The added tokens of its tokenizer."""
    listed = _settings(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    tokens = [*(_settings(folder / "tokenizer.json").get("added_tokens") or []), *listed.values()]
    return {_text(token) for token in tokens}


def _text(token: Any) -> str:
    """A special token is given as text or as an object with its text in ``content``; null where there is none."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
