"""The coding agent: it is given a task and a repository, works on it with its tools, and stops.

    python3 coding_agent.py --task FILE --repo DIR [--log FILE] [--seconds N]

README.md says how the files here work together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import llm
from tools import load_tools

MAX_STEPS = 60  # answers of the model
MAX_SECONDS = 1800.0
MAX_CONTEXT_CHARS = 240_000  # of all messages together; a token is some 4 characters
MIN_CONTEXT_CHARS = 8_000  # below this a model has too little room to work

# Loaded here so that `--help` fails where a tool or the prompt is broken.
TOOLS = load_tools()
PROMPT = (Path(__file__).parent / "prompts" / "task.md").read_text(encoding="utf-8")

Log = Callable[[str, str], None]


def forward(task: str, log: Log, seconds: float = MAX_SECONDS, chat=llm.chat) -> str:
    """Works on the task in the current folder until the model calls no more tools or a bound is
    reached, and says which. chat: as llm.chat."""
    deadline = time.monotonic() + min(seconds, MAX_SECONDS)
    infos = [info for info, _ in TOOLS.values()]
    messages = [{"role": "user", "content": first_message(task, infos)}]
    log("task", task)
    limit = MAX_CONTEXT_CHARS
    for step in range(1, MAX_STEPS + 1):
        left = deadline - time.monotonic()
        if left <= 0:
            return "out of time"
        removed = trim(messages, limit)
        if removed:
            log("context trimmed", f"{removed} old tool outputs removed")
        if size(messages) > limit:
            return "out of context"
        try:
            answer = chat(messages, infos, left)
        except llm.ContextTooLong as error:
            limit = min(limit, size(messages)) // 2
            log("context too long", f"{error}; going on with {limit} characters")
            if limit < MIN_CONTEXT_CHARS:
                return "out of context"
            continue
        log(f"model, step {step}", answer.text)
        messages.append(answer.message)
        if not answer.calls:
            return "done"
        for call in answer.calls:
            log(f"tool call {call.name}", json.dumps(call.arguments))
            output = call.error or run_tool(call.name, call.arguments)
            log(f"tool output {call.name}", output)
            messages.append(llm.output_message(call, output))
    return "out of steps"


def first_message(task: str, infos: list[dict]) -> str:
    """The prompt. The task goes in last, so that nothing in it is taken for a placeholder."""
    text = PROMPT.replace("{repo}", os.getcwd())
    text = text.replace("{tools}", "\n".join(json.dumps(info) for info in infos))
    return text.replace("{task}", task)


def run_tool(name: str, arguments: dict) -> str:
    """A tool's output. Whatever goes wrong in it is its output too."""
    if name not in TOOLS:
        return f"Error: there is no tool {name!r}. There are: {', '.join(TOOLS)}."
    try:
        return clean(str(TOOLS[name][1](**arguments)))
    except Exception as error:
        return f"Error: {type(error).__name__}: {error}"


def clean(text: str) -> str:
    """text without halves of characters, which nothing can write or send."""
    return text.encode("utf-8", "replace").decode("utf-8")


def size(messages: list[dict]) -> int:
    """Characters of all messages."""
    return sum(len(json.dumps(message)) for message in messages)


def trim(messages: list[dict], limit: int) -> int:
    """Removes the text of the oldest tool outputs, but never of the last, until the messages fit.
    Returns how many were removed. Every message after the first that is not the model's is one."""
    removed = 0
    total = size(messages)
    for message in messages[1:-1]:
        if total <= limit:
            break
        short = "[removed to save room; call the tool again if it is needed]"
        if message["role"] != "assistant" and len(message["content"]) > len(short):
            before = len(json.dumps(message))
            message["content"] = short
            total -= before - len(json.dumps(message))
            removed += 1
    return removed


def main() -> int:
    parser = argparse.ArgumentParser(description="A coding agent.")
    parser.add_argument("--task", required=True, help="file with the task's text")
    parser.add_argument("--repo", required=True, help="folder to work in")
    parser.add_argument("--log", help="file for the log; standard output by default")
    parser.add_argument("--seconds", type=float, default=MAX_SECONDS, help="wall time at most")
    options = parser.parse_args()
    task = Path(options.task).read_text(encoding="utf-8")
    if options.log:
        log_file = Path(options.log).resolve()
        log_file.write_text("")
    os.chdir(options.repo)

    def log(marker: str, text: str) -> None:
        entry = clean(f"[{marker}]\n{text}\n\n")
        if options.log:
            with log_file.open("a", encoding="utf-8") as file:
                file.write(entry)
        else:
            print(entry, end="", flush=True)

    try:
        log("end", forward(task, log, options.seconds))
    except llm.ModelError as error:
        log("model error", str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
