from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unveil.errors import UserError
from unveil.text.chat import ChatTemplate, HeaderTemplate, JinjaTemplate, PlainTemplate, chat_template
from unveil.text.conversation import answered, answers, forget

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Bye. "},
]
MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content | trim }}|"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATES: dict[str, ChatTemplate] = {
    "plain": PlainTemplate(),
    "header": HeaderTemplate(),
    "jinja": JinjaTemplate(MARKED, {"bos_token": "<s>"}),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_parts_are_the_conversation_and_each_prompt_is_what_a_chat_would_show(name: str) -> None:
    template = TEMPLATES[name]
    parts = answers(template, TALK)
    whole = "".join(p.before + p.text + p.close for p in parts)
    assert whole == template.render(TALK, opened=False)
    assert parts[0].before == template.render(TALK[:2])
    assert parts[0].before + parts[0].text + parts[0].close + parts[1].before == template.render(TALK[:4])
    assert [p.content for p in parts] == ["Hi.", "Bye."]
    assert all(p.text.endswith(p.content) and p.close for p in parts)


def test_an_answer_that_is_written_otherwise_later_is_told() -> None:
    (only,) = answers(JinjaTemplate(FORGETFUL), TALK)
    assert only.before == "[system]Be brief.|[user]Hello|[assistant]Hi.|[user]And now?|[assistant]"
    assert (only.text, only.close) == ("<think></think>Bye.", "|")


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert answers(PlainTemplate(), [*TALK, {"role": "user", "content": "Wait"}]) == answers(PlainTemplate(), TALK)


def test_the_template_with_headers_is_the_same_in_jinja(tmp_path: Path) -> None:
    HeaderTemplate().save(tmp_path)
    again = chat_template(tmp_path)
    assert isinstance(again, JinjaTemplate)
    for opened in (True, False):
        assert again.render(TALK, opened) == HeaderTemplate().render(TALK, opened)


def test_a_saved_template_is_found_with_its_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    TEMPLATES["jinja"].save(tmp_path)
    assert chat_template(tmp_path).render(TALK) == TEMPLATES["jinja"].render(TALK)
    assert '"model_max_length": 7' in (tmp_path / "tokenizer_config.json").read_text()
    PlainTemplate().save(tmp_path / "nowhere")


@pytest.mark.parametrize("messages", [TALK[:2], TALK[2:3], [*TALK[:2], {"role": "assistant", "content": " "}]])
def test_a_conversation_without_an_answer_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(UserError, match="assistant"):
        answers(PlainTemplate(), messages)


def test_a_template_that_opens_an_answer_otherwise_than_it_writes_one() -> None:
    with pytest.raises(UserError, match="chat_template: begins an answer otherwise"):
        answers(JinjaTemplate("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"), TALK)


def test_the_oldest_turn_is_forgotten_with_its_answer_and_the_system_never() -> None:
    once = forget(TALK)
    assert once == [TALK[0], *TALK[3:]]
    assert forget(once) is None


def test_spans_and_ends_are_learned_and_all_else_is_told() -> None:
    tokens, given = answered(np.arange(10), np.array([[2, 4], [6, 7]]), 99, 2)
    assert tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 99, 99]
    assert np.flatnonzero(~given).tolist() == [2, 3, 6, 7, 8]
