from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unveil.errors import UserError
from unveil.text.chat import JinjaTemplate, PlainTemplate, chat_template

TALK = [{"role": "user", "content": " Hello "}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"}]
SOURCE = (
    "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "[{{ m.role }}]{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_the_plain_template_ends_where_the_model_speaks_and_stops_where_the_user_would() -> None:
    template = PlainTemplate()
    assert template.render(TALK) == "User: Hello\nAssistant: Hi.\nUser: Bye\nAssistant:"
    assert any(template.render(TALK)[len("User: Hello") :].find(s) >= 0 for s in template.stop)


def test_a_jinja_template_gets_messages_and_specials() -> None:
    assert JinjaTemplate(SOURCE, {"bos_token": "<s>"}).render(TALK) == "<s>[user]Hello[assistant]Hi.[user]Bye[assistant]"


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.__base__.__subclasses__() }}"]
)
def test_a_hostile_template_reaches_nothing(source: str) -> None:
    with pytest.raises(UserError, match=r"^chat_template: "):
        JinjaTemplate(source).render(TALK)


def test_what_a_template_refuses_and_what_does_not_parse_is_the_users_to_know() -> None:
    with pytest.raises(UserError, match="no tools"):
        JinjaTemplate(SOURCE).render([{"role": "tool", "content": "x"}])
    with pytest.raises(UserError, match="does not parse"):
        JinjaTemplate("{% for %}")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], r"messages\[0\]"),
        ([{"role": "user", "content": "a"}, {"content": "Hello"}], r"messages\[1\]"),
        ([{"role": "user"}], r"messages\[0\]"),
        ([{"role": "user", "content": 3}], r"messages\[0\]"),
        ([{"role": "usr", "content": "Hello"}], r"messages\[0\].role"),
    ],
)
def test_messages_without_roles_are_refused(messages: Any, field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field}: "):
        PlainTemplate().render(messages)


def test_the_template_of_a_folder(tmp_path: Path) -> None:
    assert isinstance(chat_template(tmp_path), PlainTemplate)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": SOURCE, "bos_token": {"content": "<b>"}, "eos_token": None}))
    assert chat_template(tmp_path).render(TALK[:1]) == "<b>[user]Hello[assistant]"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "chosen"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path).render(TALK) == "chosen"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(UserError, match="default"):
        chat_template(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        chat_template(tmp_path)
    config.write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert chat_template(tmp_path).render(TALK) == "beside"
