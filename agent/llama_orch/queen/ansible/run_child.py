"""One ansible-runner execution in a process of its own: spec on stdin, trimmed events as JSON lines on stdout.

Started by path in isolated mode, so it imports nothing of ours. It ends its playbook on SIGTERM, and also when its
stdin closes, which is how it learns that the queen is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

import ansible_runner

MAX_TEXT = 2000
_OUTCOMES = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}


def main() -> None:
    """Run what stdin describes; the last line says how it ended."""
    asked_to_stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked_to_stop.set())
    spec = json.loads(sys.stdin.readline())
    threading.Thread(target=_wait_for_eof, args=(asked_to_stop,), daemon=True).start()
    # Ansible and its helpers may print; the queen reads JSON lines and nothing else.
    # What a host answered may hold bytes that are no text.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)
    os.dup2(2, 1)
    story = _Story(out)
    runner = ansible_runner.run(
        private_data_dir=spec["folder"],
        project_dir=spec["project_dir"],
        playbook=spec["playbook"],
        inventory=spec["inventory"],
        limit=spec["limit"],
        cmdline=spec["cmdline"],
        ident="run",
        quiet=True,
        suppress_env_files=True,
        settings={"pexpect_timeout": 0.25, "suppress_ansible_output": True, "idle_timeout": 0},
        event_handler=story.take,
        cancel_callback=asked_to_stop.is_set,
    )
    output = "" if story.stats else _output(runner)
    story.say(kind="result", status=runner.status, rc=runner.rc, stats=story.stats, output=output)
    out.flush()
    # The runner leaves threads behind that are no daemons.
    os._exit(0)


class _Story:
    def __init__(self, out: Any) -> None:
        self._out = out
        self.stats: dict[str, Any] | None = None

    def say(self, **line: Any) -> None:
        self._out.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")

    def take(self, event: dict[str, Any]) -> bool:
        """Send what the queen shows. False: no file is written for this event."""
        try:
            self._take(event.get("event", ""), event.get("event_data") or {})
        except BrokenPipeError:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def _take(self, name: str, data: dict[str, Any]) -> None:
        task = str(data.get("task") or "")[:200]
        if name == "playbook_on_stats":
            keys = ("ok", "changed", "failures", "dark", "skipped", "rescued", "ignored", "processed")
            self.stats = {key: data.get(key) or {} for key in keys}
        elif name == "playbook_on_play_start":
            self.say(kind="play", play=str(data.get("name") or data.get("play") or "")[:200])
        elif name in {"playbook_on_task_start", "playbook_on_handler_task_start"}:
            self.say(kind="task", task=task, outcome="started")
        elif name in _OUTCOMES:
            self.say(
                kind="task",
                task=task,
                host=str(data.get("host") or ""),
                outcome=_outcome(name, data),
                duration_s=data.get("duration"),
                ignored=bool(data.get("ignore_errors")),
                message=_message(data) if name in {"runner_on_failed", "runner_on_unreachable"} else None,
            )


def _outcome(name: str, data: dict[str, Any]) -> str:
    result = data.get("res") if isinstance(data.get("res"), dict) else {}
    return "changed" if name == "runner_on_ok" and result and result.get("changed") else _OUTCOMES[name]


def _message(data: dict[str, Any]) -> str:
    result = data.get("res")
    if not isinstance(result, dict):
        return str(result or "")[:MAX_TEXT]
    if result.get("censored"):
        return "the task's output is hidden, as it may hold a secret"
    failed = [item for item in result.get("results") or [] if isinstance(item, dict) and item.get("failed")]
    # Of a loop the task itself tells nothing but that one or more items failed.
    told = failed[0] if failed else result
    parts = [str(told.get(key) or "").strip() for key in ("msg", "module_stderr", "stderr")]
    text = "\n".join(dict.fromkeys(part for part in parts if part))
    # A role's message ends with what to do.
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2]} … {text[3 - MAX_TEXT // 2 :]}"


def _output(runner: Any) -> str:
    try:
        text = runner.stdout.read()
    except (OSError, ansible_runner.exceptions.AnsibleRunnerException):
        return ""
    return text[-2 * MAX_TEXT :]


def _wait_for_eof(asked_to_stop: threading.Event) -> None:
    sys.stdin.read()
    asked_to_stop.set()


if __name__ == "__main__":
    main()
