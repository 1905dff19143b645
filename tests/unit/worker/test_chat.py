from __future__ import annotations

import pytest

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage
from llama_orch.worker.chat import ChatTemplate

HELLO = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello")]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


def test_messages_are_rendered_with_the_models_own_tokens():
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert template(source).render(HELLO) == "<s>[system]Be brief.</s>[user]Hello</s>[assistant]"


def test_what_templates_commonly_use_works():
    source = (
        "{%- for m in messages -%}\n"
        "    {%- if loop.index0 == 0 -%}{%- continue -%}{%- endif -%}\n"
        "    {% generation %}{{ m | tojson }}{% endgeneration %}\n"
        "{%- endfor -%}"
        "{{ strftime_now('%Y')[:2] }}{% if tools is not none %}tools{% endif %}"
    )
    assert template(source).render(HELLO) == '{"role": "user", "content": "Hello"}20'


def test_the_developer_speaks_as_the_system():
    source = "{% for m in messages %}{{ m.role }}:{{ m.name | default('-') }} {% endfor %}"
    messages = [ChatMessage(role="developer", content="x"), ChatMessage(role="user", content="y", name="Ann")]
    assert template(source).render(messages) == "system:- user:Ann "


def test_a_models_file_without_a_template_says_what_to_use():
    with pytest.raises(BadRequest, match="/v1/completions") as caught:
        template(None).render(HELLO)
    assert caught.value.error_code == "no_chat_template"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
    ],
)
def test_a_template_that_fails_or_misbehaves_is_a_400(source: str, reason: str):
    with pytest.raises(BadRequest, match=reason):
        template(source).render(HELLO)
