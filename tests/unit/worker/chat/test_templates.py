from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatMessage
from llama_orch.worker.chat import sandbox
from llama_orch.worker.chat.templates import ChatTemplate

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
        ("{{ messages[9].content }}", "reads what is not there"),
        ("{{ 1 / 0 }}", "computes with what it cannot"),
        ("{% if %}", "chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not for templates"),
        ("{{ messages.append(1) }}", "not for templates"),
    ],
)
def test_a_template_that_fails_or_misbehaves_is_a_400(source: str, reason: str):
    with pytest.raises(BadRequest, match=reason):
        template(source).render(HELLO)


def talk(*texts: str) -> list[ChatMessage]:
    """A conversation in which the user and the assistant take turns."""
    roles = ("user", "assistant")
    return [ChatMessage(role=roles[number % 2], content=text) for number, text in enumerate(texts)]


PLAIN_TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
BEGINS = "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.mark.parametrize("content", ["The answer is", "The answer is ", " The\n", "a", "[user]x;", ""])
@pytest.mark.parametrize(
    "source",
    [
        PLAIN_TURNS + BEGINS,
        PLAIN_TURNS + "[assistant]",
        # Some put what a model thinks before what it says, and only where it goes on.
        "{% for m in messages %}[{{ m.role }}]{{ '<think></think>' if loop.last and m.role == 'assistant' }}"
        "{{ m.content }};{% endfor %}" + BEGINS,
        # Some insist that the user speaks last.
        "{% if messages[-1].role != 'user' %}{{ raise_exception('the user speaks last') }}{% endif %}"
        + PLAIN_TURNS
        + BEGINS,
        # And some do not show the assistant's last words.
        "{% for m in messages %}{% if not (loop.last and m.role == 'assistant') %}[{{ m.role }}]{{ m.content }};"
        "{% endif %}{% endfor %}" + BEGINS,
        # Parts only.
        "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}" + BEGINS,
    ],
)
def test_the_last_words_of_the_assistant_are_continued(source: str, content: str):
    text = template(source).render(talk("Hello", content), turn="continued")
    assert text.replace("<think></think>", "") == f"[user]Hello;[assistant]{content}"
    # As a new turn they are one of many.
    if "speaks last" not in source and "{% if not" not in source:
        assert template(source).render(talk("Hello", content)).endswith(";[assistant]")


def test_what_a_template_trims_is_kept_where_the_answer_goes_on():
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }};{% endfor %}" + BEGINS
    assert template(source).render(talk(" Hello ", "The answer is "), turn="continued") == (
        "[user]Hello;[assistant]The answer is "
    )


def test_a_turn_need_not_begin():
    assert template(PLAIN_TURNS + BEGINS).render(talk("Hello"), turn="none") == "[user]Hello;"


def test_a_template_may_take_more_where_conversations_may_be_longer():
    long = talk("x" * (sandbox.MAX_TEXT - 1))
    with pytest.raises(BadRequest, match="too long"):
        template(PLAIN_TURNS).render(long)
    larger = ChatTemplate(PLAIN_TURNS, bos_text="", eos_text="", scale=2)
    assert len(larger.render(long)) > sandbox.MAX_TEXT


CALLS = [
    ChatMessage.model_validate(message)
    for message in (
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}]},
        {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "clock", "arguments": '{"tz": "é"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    )
]
CALL = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.WANTED }}{% endfor %}{% endfor %}"


def calling(arguments: str) -> list[ChatMessage]:
    call = {"id": "c1", "function": {"name": "clock", "arguments": arguments}}
    return [ChatMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})]


def test_tools_and_calls_reach_the_template():
    source = (
        "{% for t in tools %}{{ t.function.name }} {% endfor %}"
        "{% for m in messages %}"
        "{{ m.role }}={{ m.content }}{% if 'tool_calls' in m %}{{ m.tool_calls | tojson }}{% endif %}"
        "{{ m.tool_call_id | default('') }};"
        "{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "clock"}}]
    assert template(source).render(CALLS, tools) == (
        "clock user=What time?;"
        'assistant=[{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": {"tz": "é"}}}];'
        "tool=12:00c1;"
    )


@pytest.mark.parametrize(
    ("wanted", "arguments", "expected"),
    [
        ("arguments | tojson", '{"tz": "é"}', '{"tz": "é"}'),
        ("arguments", '{"tz": "é"}', '{"tz": "é"}'),
        ("arguments.tz", '{"tz": "é"}', "é"),
        ("arguments is mapping", '{"tz": "é"}', "True"),
        ("name + ':' + c.function.arguments + '.'", '{"tz": 1}', 'clock:{"tz": 1}.'),
        ("name ~ c.function.arguments", '{"tz": 1}', 'clock{"tz": 1}'),
        ("arguments | tojson", "", "{}"),
        ("arguments | tojson", "[1]", "[1]"),
        ("arguments", "not JSON", "not JSON"),
    ],
)
def test_arguments_are_an_object_that_prints_as_json(wanted: str, arguments: str, expected: str):
    assert template(CALL.replace("WANTED", wanted)).render(calling(arguments)) == expected


def test_no_content_is_an_empty_text():
    source = "{% for m in messages %}{{ m.content | trim }}{{ m.content + '!' }}{% endfor %}"
    assert template(source).render(calling("{}")) == "!"


def test_a_template_that_wants_parts_gets_parts():
    source = (
        "{% for m in messages %}{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
    )
    assert template(source).render(HELLO) == "Be brief.;Hello;"
    either = "{% for m in messages %}{{ m.content if m.content is string else 'parts' }};{% endfor %}"
    assert template(either).render(HELLO) == "Be brief.;Hello;"


def test_the_source_stays_available():
    assert template("{{ bos_token }}").source == "{{ bos_token }}"
    assert template(None).source is None


def test_loops_and_joined_texts_work_as_ever():
    source = (
        "{% for m in messages %}"
        "{{ loop.index }}/{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.previtem is defined }}"
        "{{ m.role ~ loop.revindex ~ none }} "
        "{% else %}empty{% endfor %}"
        "{% for k, v in {'a': 1, 'b': 2}.items() if v > 1 %}{{ k }}{% endfor %}"
        "{% for x in nothing %}{% else %}empty{% endfor %}"
        "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
        "{% set ns = namespace(n=0) %}{% for x in range(3) %}{% set ns.n = ns.n + x * 2 %}{% endfor %}{{ ns.n }}"
        "{{ '-' * 3 }}{{ [1] + [2] }}{{ 'a' + 'b' }}"
    )
    assert template(source).render(HELLO) == (
        "1/2TrueFalseFalsesystem2None 2/2FalseTrueTrueuser1None bempty1236---[1, 2]ab"
    )


GROWN = (
    "{% set n = namespace(x='xxxxxxxxxxxxxxxx', l=[]) %}{% for a in range(17) %}{% set n.x = n.x + n.x %}{% endfor %}"
)
# Few characters that ask for very much, each in a way of its own.
AMPLIFIERS = [
    *(f"{{{{ messages[0].role.{call} }}}}" for call in (
        "ljust(3000000000)", "rjust(3000000000)", "center(3000000000)", "zfill(3000000000)", "encode()",
        "replace('', 'x' * 4000000)", "join(['x' * 4000000] * 99999)",
        "translate({115: 'x' * 4000000})", "format_map({})" + ".ljust(9999999999)")),
    "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "{{ ('a ' * 2000000).split() }}", "{{ ('a\n' * 2000000).splitlines() }}", "{{ 5 .to_bytes(9999999999, 'big') }}",
    "{{ 'a' | center(3000000000) }}", "{{ messages[0].role | center(3000000000) }}",
    "{{ '%3000000000d' % 1 }}", "{{ '%*d' % (3000000000, 1) }}", "{{ '%3000000000d' | format(1) }}",
    "{{ '%(a)s' * 1000 % {'a': 'x' * 1000000} }}", "{{ '%s%s%s' % (('x' * 4000000,) * 3) }}",
    "{{ '{:>3000000000}'.format(1) }}", "{{ '{:>{}}'.format(1, 3000000000) }}",
    "{{ ('{0}' * 1000).format('x' * 1000000) }}", "{{ ('{a}' * 1000).format_map({'a': 'x' * 1000000}) }}",
    "{{ 'x' | indent(3000000000, true) }}", "{{ ('\n' * 100000) | indent('x' * 100000, true, true) }}",
    "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}", "{{ ([0] * 100000) | join('x' * 100000) }}",
    "{{ [1] | batch(3000000000, 'x') | list }}", "{{ [1] | slice(3000000000) | list }}",
    "{{ [1] | tojson(indent=3000000000) }}", "{{ ([[[[0]]]] * 100000) | tojson(indent=99) }}",
    "{{ [1, 2] | tojson(separators=('x' * 4000000, ':')) }}", "{{ [0] * 3000000000 }}",
    "{{ (['x' * 4000000] * 100000) | tojson }}", "{{ ['x' * 4000000] * 100000 }}",
    "{{ (['x' * 4000000] * 99) | string }}",
    "{{ ('x' * 4000000) ~ ('x' * 4000000) }}", "{{ (['x' * 4000000] * 100000) ~ '' }}",
    "{{ (['x' * 4000000] * 100000) | sort | length }}", "{{ ([['x']] * 9999) | sum(start=[]) | length }}",
    "{{ (['x' * 4000000] * 100000) | join }}", "{{ ''.join(['x' * 4000000] * 100000) }}",
    "{{ lipsum(n=100000000) }}", "{{ 1.5 | round(3000000000, 'ceil') }}", "{{ ('1' * 4000000) | int(base=2) * 2 }}",
    "{{ ('x ' * 99999) | wordwrap(1, true, 'y' * 99999) }}", "{{ strftime_now('%3000000000d') }}",
    "{{ strftime_now('%c' * 1000) }}", "{{ namespace(x=['x' * 4000000] * 100000) }}",
    GROWN + "{% for a in range(99999) %}{{ n.x }}{% endfor %}",
    GROWN + "{% macro m() %}{% for a in range(99999) %}{{ n.x }}{% endfor %}{% endmacro %}{{ m() | length }}",
    GROWN + "{% set y %}{% for a in range(99999) %}{{ n.x }}{% endfor %}{% endset %}{{ y | length }}",
    GROWN + "{% for a in range(9999) %}{% set n.l = n.l + [n.x[1:]] %}{% endfor %}",
    GROWN + "{% for a in range(9999) %}{% set n.l = n.l + [n.x | upper] %}{% endfor %}",
    GROWN + "{% for a in range(9999) %}{% set n.l = n.l + [n.x.lower()] %}{% endfor %}",
    GROWN + "{% for a in range(9999) %}{% set n.l = n.l + [n.x + 'y'] %}{% endfor %}",
    GROWN + "{% for a in range(9999) %}{% set n.l = n.l + [n.x | list] %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for a in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}"
    "{{ n.x.items() }}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds of computing"),
        ("{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}", "seconds of computing"),
        (
            "{% macro f(n) %}{{ f(n + 1) if n < 40 }}{{ f(n + 1) if n < 40 }}{% endmacro %}{{ f(0) }}",
            "seconds of computing",
        ),
        ("{% for a in [0] recursive %}{{ loop(range(99999)) }}{% endfor %}", "seconds of computing|without end"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "powers|becomes too l"),
        ("{% for a in range(999999) %}{% endfor %}", "powers|becomes too l"),
        ("{{ 'x' * 10000000000 }}", "powers|becomes too l"),
        ("{{ 9 ** 9 ** 9 }}", "powers|becomes too l"),
        (
            "{% set n = namespace(x=9) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "powers|becomes too l",
        ),
        (
            "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "becomes too l",
        ),
        (
            "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "becomes too l",
        ),
    ],
)
def test_a_template_that_would_not_end_is_a_400(source: str, reason: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.05)
    with pytest.raises(BadRequest, match=reason):
        template(source).render(HELLO)


@contextlib.contextmanager
def memory_bounded(megabytes: int) -> Iterator[None]:
    """A MemoryError where more is taken than there is in use now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("source", AMPLIFIERS)
def test_a_few_characters_cannot_ask_for_much_memory(source: str, monkeypatch: pytest.MonkeyPatch):
    # The time alone would stop some of them, and a little too late.
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 60.0)
    with memory_bounded(512):
        made = template(source)
        with pytest.raises(
            BadRequest,
            match=r"too long|too wide|MiB of texts|too large|not for templates|namespace|"
            r"is not there|only numbers",
        ):
            made.render(HELLO)


def test_what_grows_within_its_bounds_works_as_ever():
    source = (
        "{{ 'ab'.ljust(4) + 'ab'.center(4) ~ 'ab'.zfill(4) }}|{{ 'a\tb'.expandtabs(4) }}|{{ 'a-b'.replace('-', '+') }}|"
        "{{ ' '.join(['a', 'b']) }}|{{ '%s=%03d' % ('a', 5) }}|{{ '{}:{:>3}'.format('a', 5) }}|{{ 7 % 4 }}|"
        "{{ 'ab' | center(4) }}|{{ 'a\nb' | indent(2) }}|{{ [1, 2] | tojson(indent=2) }}|{{ [1, 2, 3] | sum }}|"
        "{{ [3, 1] | sort }}|{{ [1, 1] | unique | list }}|{{ [1, 2, 3] | batch(2, 0) | list }}|{{ 'abc'[1:] }}|"
        "{{ 'abc'[::-1] }}|{{ ['a', 'b'][-1:] }}|{{ 'a b'.split() }}|"
        "{{ messages | map(attribute='role') | join(',') }}|"
        "{{ {'b': 1, 'a': 2} | dictsort }}|{{ 2.567 | round(1) }}|{{ '7' | int + 1 }}|{{ '%s' | format('x') }}|"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
        "{{ nothing | join }}|{{ nothing | list }}"
    )
    assert template(source).render(HELLO) == (
        "ab   ab 00ab|a   b|a+b|a b|a=005|a:  5|3| ab |a\n  b|[\n  1,\n  2\n]|6|[1, 3]|[1]|[[1, 2], [3, 0]]|bc|"
        "cba|['b']|['a', 'b']|system,user|[('a', 2), ('b', 1)]|2.6|8|x|1||[]"
    )


def test_a_long_conversation_is_within_the_bounds():
    messages = [ChatMessage(role="user", content=f"{number} " + "a" * 240) for number in range(4096)]
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{{ (m.content + '!').split('!')[0][:2] }}"
        "{% if loop.index0 == messages | length - 1 %}last{% endif %}{% endfor %}"
    )
    assert template(source).render(messages).endswith("last")
