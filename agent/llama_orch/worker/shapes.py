"""OpenAI's shapes: what the engine hands out as completions and chats, whole or as the events of a stream."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from pydantic import BaseModel

from llama_orch.contract import inference as wire

from .chat.tools import AnswerReader, Call, Content, Delta
from .generation import Ending, Engine, Logprob, Piece


def usage_of(endings: list[Ending], *, prompts: int) -> wire.Usage:
    """Tokens of all choices; each of the first `prompts` endings stands for a prompt of its own.

    What OpenAI calls cached are tokens that a slot held already.
    """
    choices = len(endings) // prompts
    first = endings[::choices]
    read, written = sum(one.prompt_tokens for one in first), sum(one.tokens for one in endings)
    return wire.Usage(
        prompt_tokens=read,
        completion_tokens=written,
        total_tokens=read + written,
        prompt_tokens_details=wire.PromptTokensDetails(cached_tokens=sum(one.reused for one in first)),
    )


def timings_of(endings: list[Ending]) -> wire.Timings:
    """What the answers took, those to one prompt as if they were one: all their tokens, and the longest time."""
    reused, read, written = endings[0].reused, endings[0].prompt_tokens, sum(one.tokens for one in endings)
    prompt_ms = 1000 * max(one.prompt_seconds for one in endings)
    ms = 1000 * max(one.seconds for one in endings)
    return wire.Timings(
        cache_n=reused,
        prompt_n=read - reused,
        prompt_ms=prompt_ms,
        prompt_per_token_ms=_per(prompt_ms, read - reused),
        prompt_per_second=_per(1000.0 * (read - reused), prompt_ms),
        predicted_n=written,
        predicted_ms=ms,
        predicted_per_token_ms=_per(ms, written),
        predicted_per_second=_per(1000.0 * written, ms),
    )


def _per(amount: float, count: float) -> float:
    return round(amount / count, 3) if count else 0.0


def _common(kind: str, model: str, fingerprint: str) -> dict[str, Any]:
    """What each event and the whole of an answer begin with."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model,
        "system_fingerprint": fingerprint,
    }  # fmt: skip


class CompletionShape:
    """A completion's events and its whole. `fingerprint` tells apart what may answer differently."""

    def __init__(self, model: str, fingerprint: str, engine: Engine) -> None:
        self._engine = engine
        self._common = _common("cmpl", model, fingerprint)
        self._offsets: dict[int, int] = {}
        # Most events are a piece of text and nothing else: what stands around it is made once.
        self._before = f'{json.dumps(self._common | {"object": "text_completion"})[:-1]}, "choices": [{{"index": '
        self._after = ', "finish_reason": null, "logprobs": null}], "usage": null}'

    def opening(self, count: int) -> list[BaseModel | str]:
        """What comes before the first piece."""
        return []

    def part(self, index: int, piece: Piece) -> list[BaseModel | str]:
        """The events of one piece."""
        if not piece.logprobs:
            return [f'{self._before}{index}, "text": {json.dumps(piece.text)}{self._after}']
        choice = wire.CompletionChoice(
            index=index, text=piece.text, finish_reason=None, logprobs=self._logprobs(index, piece.logprobs)
        )
        return [wire.Completion(**self._common, choices=[choice])]

    def last(self, index: int, ending: Ending) -> list[BaseModel | str]:
        """The events at the end of a choice."""
        choice = wire.CompletionChoice(index=index, text="", finish_reason=ending.reason)
        return [wire.Completion(**self._common, choices=[choice], timings=timings_of([ending]))]

    def usage(self, usage: wire.Usage) -> BaseModel:
        """The event after all choices."""
        return wire.Completion(**self._common, choices=[], usage=usage)

    def whole(self, pieces: list[list[Piece]], endings: list[Ending], usage: wire.Usage) -> wire.Completion:
        """All choices in one."""
        made: list[wire.CompletionChoice] = []
        for index, (parts, ending) in enumerate(zip(pieces, endings, strict=True)):
            logprobs = [one for part in parts for one in part.logprobs]
            made.append(
                wire.CompletionChoice(
                    index=index,
                    text="".join(part.text for part in parts),
                    finish_reason=ending.reason,
                    logprobs=self._logprobs(index, logprobs) if logprobs else None,
                )
            )
        return wire.Completion(**self._common, choices=made, usage=usage, timings=timings_of(endings))

    def _logprobs(self, index: int, found: list[Logprob]) -> wire.CompletionLogprobs:
        tokens = [_text(self._engine, one.token) for one in found]
        offsets: list[int] = []
        for one in found:
            offsets.append(self._offsets.get(index, 0))
            shown = self._engine.piece(one.token).decode(errors="ignore")
            self._offsets[index] = offsets[-1] + len(shown)
        return wire.CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[one.value for one in found],
            top_logprobs=[{_text(self._engine, token): value for token, value in one.top} or None for one in found],
            text_offset=offsets,
        )


class ChatShape:
    """A chat's events and its whole. `readers` tell content and tool calls apart, one for each choice."""

    def __init__(self, model: str, fingerprint: str, engine: Engine, readers: list[AnswerReader | None]) -> None:
        self._engine = engine
        self._readers = readers
        self._called = [False] * len(readers)
        self._common = _common("chatcmpl", model, fingerprint)
        self._before = f'{json.dumps(self._common | {"object": "chat.completion.chunk"})[:-1]}, "choices": [{{"index": '
        self._after = '}, "logprobs": null, "finish_reason": null}], "usage": null}'

    def opening(self, count: int) -> list[BaseModel | str]:
        """What comes before the first piece."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(count)]

    def part(self, index: int, piece: Piece) -> list[BaseModel | str]:
        """The events of one piece."""
        reader = self._readers[index]
        if reader is None and not piece.logprobs:
            return [f'{self._before}{index}, "delta": {{"content": {json.dumps(piece.text)}{self._after}']
        deltas: list[Delta] = reader.feed(piece.text) if reader else [Content(piece.text)]
        return [
            self._chunk(index, self._delta(index, delta), logprobs=piece.logprobs if number == 0 else [])
            for number, delta in enumerate(deltas or ([Content("")] if piece.logprobs else []))
        ]

    def last(self, index: int, ending: Ending) -> list[BaseModel | str]:
        """The events at the end of a choice."""
        reader = self._readers[index]
        deltas = reader.finish(cut=ending.reason == "length") if reader else []
        rest = [self._chunk(index, self._delta(index, delta)) for delta in deltas]
        last = self._chunk(index, {}, reason=self._reason(index, ending))
        return [*rest, last.model_copy(update={"timings": timings_of([ending])})]

    def usage(self, usage: wire.Usage) -> BaseModel:
        """The event after all choices."""
        return wire.ChatChunk(**self._common, choices=[], usage=usage)

    def whole(self, pieces: list[list[Piece]], endings: list[Ending], usage: wire.Usage) -> wire.ChatCompletion:
        """All choices in one."""
        made: list[wire.ChatChoice] = []
        for index, (parts, ending) in enumerate(zip(pieces, endings, strict=True)):
            logprobs = [one for part in parts for one in part.logprobs]
            made.append(
                wire.ChatChoice(
                    index=index,
                    message=self._message(index, "".join(part.text for part in parts), ending),
                    finish_reason=self._reason(index, ending),
                    logprobs=self._logprobs(logprobs) if logprobs else None,
                )
            )
        return wire.ChatCompletion(**self._common, choices=made, usage=usage, timings=timings_of(endings))

    def _message(self, index: int, text: str, ending: Ending) -> wire.ChatAnswer:
        reader = self._readers[index]
        if reader is None:
            return wire.ChatAnswer(content=text)
        content, calls = "", {}
        for delta in [*reader.feed(text), *reader.finish(cut=ending.reason == "length")]:
            if isinstance(delta, Content):
                content += delta.text
                continue
            self._called[index] = True
            known = calls.get(delta.index)
            name, arguments = (known[1], known[2]) if known else (delta.name or "", "")
            calls[delta.index] = (known[0] if known else delta.id or "", name, arguments + delta.arguments)
        called = [
            wire.ToolCalled(id=id_, function=wire.FunctionCalled(name=name, arguments=arguments))
            for id_, name, arguments in calls.values()
        ]
        return wire.ChatAnswer(content=content or (None if called else ""), tool_calls=called or None)

    def _reason(self, index: int, ending: Ending) -> wire.FinishReason:
        return "tool_calls" if self._called[index] and ending.reason == "stop" else ending.reason

    def _delta(self, index: int, delta: Delta) -> dict[str, Any]:
        if isinstance(delta, Content):
            return {"content": delta.text}
        self._called[index] = True
        return {"tool_calls": [_call_delta(delta)]}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, reason: str | None = None, logprobs: list[Logprob] | None = None
    ) -> wire.ChatChunk:
        told = self._logprobs(logprobs).model_dump() if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return wire.ChatChunk(**self._common, choices=[choice])

    def _logprobs(self, found: list[Logprob]) -> wire.ChatLogprobs:
        def told(token: int, value: float | None) -> dict[str, Any]:
            return {"token": _text(self._engine, token), "logprob": value, "bytes": list(_bytes(self._engine, token))}

        return wire.ChatLogprobs(
            content=[
                wire.TokenLogprob(
                    **told(one.token, one.value), top_logprobs=[wire.TopLogprob(**told(*top)) for top in one.top]
                )
                for one in found
            ]
        )


def _call_delta(call: Call) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _bytes(engine: Engine, token: int) -> bytes:
    return engine.piece(token, special=True)


def _text(engine: Engine, token: int) -> str:
    raw = _bytes(engine, token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # As OpenAI writes a part of a character, so that no two of them look the same.
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
