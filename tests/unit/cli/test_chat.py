from __future__ import annotations

import json

from llama_orch.contract.inference import ChatRequest
from tests.unit.cli.conftest import Command
from tests.unit.cli.services import Fleet, a_worker

ANSWER = "Hello there, tester."


async def test_one_question_goes_to_an_idle_worker(fleet: Fleet, command: Command):
    fleet.workers = {
        "w1": a_worker("w1", status="loading"),
        "w2": a_worker("w2", status="busy", url="http://127.0.0.1:9"),
        "w3": a_worker("w3", url=fleet.urls["worker"]),
    }
    result = await command("chat", "Hi", "--system", "Be kind", "--max-tokens", "9", "--temperature", "0")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    body = fleet.bodies[0]
    assert isinstance(body, ChatRequest) and (body.max_tokens, body.temperature, body.stream) == (9, 0.0, True)
    assert [(m.role, m.content) for m in body.messages] == [("system", "Be kind"), ("user", "Hi")]


async def test_json_is_the_whole_answer(fleet: Fleet, command: Command):
    result = await command("chat", "Hi", "--worker", fleet.urls["worker"], "--json")
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == ANSWER


async def test_a_conversation_remembers(fleet: Fleet, command: Command):
    result = await command("chat", "--worker", fleet.urls["worker"], stdin="One\n\nTwo\n")
    assert result.exit_code == 0 and result.stdout.count(ANSWER) == 2
    body = fleet.bodies[1]
    assert isinstance(body, ChatRequest) and [m.content for m in body.messages] == ["One", ANSWER, "Two"]


async def test_what_cannot_be_asked_says_what_to_do(fleet: Fleet, command: Command):
    none = await command("chat", "Hi")
    assert none.exit_code == 1 and "llama-orch workers start" in none.stderr
    fleet.workers = {"w1": a_worker("w1", status="loading")}
    loading = await command("chat", "Hi")
    assert loading.exit_code == 1 and "w1 is loading" in loading.stderr
    fleet.busy = True
    busy = await command("chat", "Hi", "--worker", fleet.urls["worker"])
    assert busy.exit_code == 1 and "Try again in 3 s." in busy.stderr
    assert (await command("chat", "--json")).exit_code == 2
