"""Chat templates of the families whose tool calls are known, and how each writes a call."""

from __future__ import annotations

from typing import Any

from llama_orch.contract.inference import ChatRequest
from llama_orch.worker.chat.templates import ChatTemplate
from llama_orch.worker.chat.tools import ToolPlan, plan_tools
from llama_orch.worker.generation import Constraint

# Templates as the families have them, cut down to what matters here.
HERMES = r"""
{%- if tools %}
    {{- "<|im_start|>system\n<tools>" }}
    {%- for tool in tools %}{{ "\n" ~ tool | tojson }}{% endfor %}
    {{- "\n</tools>\nCall: <tool_call>\n{\"name\": <name>, \"arguments\": <object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {{- "<|im_start|>user\n<tool_response>\n" + message.content + "\n</tool_response><|im_end|>\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role }}{% if message.content %}{{ "\n" + message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + "}\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{% endif %}"""

LLAMA3 = r"""
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for message in messages %}
    {%- if message.role == "user" and loop.first and tools is not none %}
        {{- "<|start_header_id|>user<|end_header_id|>\n\n" }}
        {{- 'Answer with {"name": function name, "parameters": its arguments}.' }}
        {%- for tool in tools %}{{ "\n" }}{{ tool | tojson(indent=None) }}{% endfor %}
        {{- "\n" + message.content + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception("single tool-calls only") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
        {{- '{"name": "' + call.name + '", ' }}{{ '"parameters": ' }}{{ call.arguments | tojson + "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content | tojson + "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}"""

MISTRAL_LIST = r"""
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none %}{{ "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" }}{% endif %}
        {{- "[INST]" + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception("nine letters and digits") }}{% endif %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}{{ ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception("nine letters and digits") }}{% endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}"""

MISTRAL_NAMED = r"""
{%- for message in messages %}
    {%- if message.role == "user" %}{{ "[INST]" + message.content + "[/INST]" }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- "[TOOL_CALLS]" + call.function.name + "[ARGS]" + call.function.arguments | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}{{ "[TOOL_RESULTS]" + message.tool_call_id + "[TOOL_CONTENT]" + message.content }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ "[AVAILABLE_TOOLS]" + tools | tojson }}{% endif %}"""

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN

TEMPLATES = {
    "hermes": HERMES,
    "llama3": LLAMA3,
    "mistral-list": MISTRAL_LIST,
    "mistral-named": MISTRAL_NAMED,
    "in words": PLAIN,
}

WEATHER = {
    "name": "get_weather",
    "description": 'Tells the "weather".',
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock"}
CALLED = {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'}
TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call_0123456789", "function": CALLED}]},
    {"role": "tool", "tool_call_id": "call_0123456789", "content": "rain"},
]


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


def plan(
    source: str, messages: list[dict[str, Any]] | None = None, /, answer: Constraint | None = None, **more: Any
) -> ToolPlan:
    body = {
        "messages": messages or TALK[:1],
        "tools": [{"type": "function", "function": one} for one in (WEATHER, CLOCK)],
        **more,
    }
    return plan_tools(template(source), ChatRequest.model_validate(body), answer)


def rendered(source: str, made: ToolPlan) -> str:
    return template(source).render(made.messages, made.tools)


GOOD = '{"city": "Köln", "days": 2}'


def written(name: str, function: str = "get_weather", arguments: str = GOOD) -> str:
    """One call as the family writes it."""
    return {
        "hermes": f'<tool_call>\n{{"name": "{function}", "arguments": {arguments}}}\n</tool_call>',
        "llama3": f'{{"name": "{function}", "parameters": {arguments}}}',
        "mistral-list": f'[TOOL_CALLS][{{"name": "{function}", "arguments": {arguments}, "id": "abcdef123"}}]',
        "mistral-named": f"[TOOL_CALLS]{function}[ARGS]{arguments}",
        "in words": f'{{"tool_call": {{"name": "{function}", "arguments": {arguments}}}}}',
    }[name]


def both(name: str) -> str:
    """Two calls in one answer."""
    if name == "mistral-list":
        first = '{"name": "get_weather", "arguments": ' + GOOD + "}"
        return f'[TOOL_CALLS][{first}, {{"name": "clock", "arguments": {{}}}}]'
    return written(name) + "\n" + written(name, "clock", "{}")
