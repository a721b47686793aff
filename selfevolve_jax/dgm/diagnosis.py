"""What a parent is to be improved from, and a model's diagnosis of it (DGM, arXiv 2505.22954).

The task's private tests are not shown, unlike in the released code: a model that reads them can write
what passes them into the agent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfevolve_jax.dgm.coding import cut
from selfevolve_jax.dgm.contract import Benchmark, Models, Parent, Result, Task, Tree, Usage, draws
from selfevolve_jax.dgm.first_agent import ENTRY_POINT

EMPTY, STOCHASTIC, CONTEXT = "empty patches", "stochasticity", "context length"
EMPTY_SHARE = 0.10  # of the attempts, from which on EMPTY applies
CHANCE = 0.25  # of each of the three, where it applies
TRIES = 3

CODE_CHARS, LOG_CHARS, TASK_CHARS, ANSWER_CHARS = 150_000, 60_000, 20_000, 20_000
FAILED_TESTS = 100  # named at most
REPLY_CHARS = 100_000  # an answer longer than this is none
RAW_CHARS = 20_000  # kept of each answer

# What an agent or a server says once the context is full; see agent/coding_agent.py.
FULL_CONTEXT = re.compile(
    r"^\[context |out of context|context[ _](length|window)|maximum context", re.I | re.M
)


@dataclass(frozen=True)
class Entry:
    """name: a task's id, or EMPTY, STOCHASTIC, CONTEXT. task, result: the attempt that shows it."""

    name: str
    task: Task
    result: Result


@dataclass(frozen=True)
class Diagnosis:
    """What the model is asked for, field by field."""

    log_summarization: str
    potential_improvements: str
    improvement_proposal: str
    implementation_suggestion: str
    problem_description: str


FIELDS = {
    "log_summarization": "what the agent did in this log, step by step, and where it went wrong",
    "potential_improvements": "changes to the agent that would help it on such tasks in general",
    "improvement_proposal": "the one of them that would help most, in detail, and why",
    "implementation_suggestion": "which files and functions to change, and how",
    "problem_description": (
        "the proposal as a task for the programmer who will carry it out, and who sees the agent's "
        "code but neither this log nor your other answers"
    ),
}


@dataclass(frozen=True)
class Diagnosed:
    """diagnosis: None where no answer could be read, and `reason` says why for each. raw: the answers
    as they came, cut."""

    diagnosis: Diagnosis | None
    reason: str
    raw: str
    usage: Usage


def choose_entry(attempts: Sequence[tuple[Task, Result]], seed: int) -> Entry:
    """What to improve from: each of the three general weaknesses with probability 0.25 where it
    applies (asked in this order), otherwise one task that was not solved, drawn evenly. Stochasticity
    always applies. Where all is solved it is the entry, as nothing else is left."""
    if not attempts:
        raise ValueError("an entry needs at least one attempt")
    random = draws(seed, "entry")
    unsolved = [a for a in attempts if not a[1].solved]
    empty = [a for a in attempts if a[1].empty]
    full = [a for a in unsolved if FULL_CONTEXT.search(a[1].log)]
    general = (
        (EMPTY, empty if len(empty) >= EMPTY_SHARE * len(attempts) else []),
        (STOCHASTIC, unsolved),
        (CONTEXT, full),
    )
    for name, shown in general:
        if shown and random.random() < CHANCE:
            return Entry(name, *random.choice(shown))
    if not unsolved:
        return Entry(STOCHASTIC, *random.choice(attempts))
    by_task = {task.id: (task, result) for task, result in reversed(unsolved)}
    task, result = by_task[random.choice(sorted(by_task))]
    return Entry(task.id, task, result)


def diagnose(
    parent: Parent,
    entry: Entry,
    benchmark: Benchmark,
    models: Models,
    private_tests: Callable[[Task], str] | None = None,
) -> Diagnosed:
    """Asks the diagnosis model, at most TRIES times. private_tests: what the model is shown of a task's
    hidden tests; None, the default, shows nothing. Raises Unavailable, BudgetSpent."""
    messages = [{"role": "user", "content": prompt(parent, entry, benchmark, private_tests)}]
    raw, reasons, usage = [], [], Usage()
    for number in range(1, TRIES + 1):
        purpose = f"diagnosis of agent {parent.id}, try {number}"
        text, cost = models.chat("diagnosis", messages, purpose)
        text = text.encode("utf-8", "replace").decode()  # JSON can carry halves of characters
        usage += cost
        raw.append(f"[answer {number}]\n{cut(text, RAW_CHARS)}\n")
        try:
            return Diagnosed(parse(text), "", "\n".join(raw), usage)
        except ValueError as error:
            reasons.append(f"answer {number}: {error}")
            complaint = f"That cannot be used: {error}. Answer again, with the JSON object alone."
            messages[1:] = [
                {"role": "assistant", "content": cut(text, RAW_CHARS) or "(no text)"},
                {"role": "user", "content": complaint},
            ]
    return Diagnosed(None, "no diagnosis: " + "; ".join(reasons), "\n".join(raw), usage)


def parse(text: str) -> Diagnosis:
    """The diagnosis in an answer: a JSON object, alone or as the only fenced block, with the five
    fields and no other, each a text that is not blank. ValueError says what is wrong."""
    if len(text) > REPLY_CHARS:
        raise ValueError(f"it has {len(text)} characters; at most {REPLY_CHARS} are read")
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.S)
    if not text.strip():
        raise ValueError("it is empty")
    blocks = re.findall(r"^```(?:json)?[ \t]*\n(.*?)\n```[ \t]*$", text, re.S | re.M)
    if len(blocks) > 1 and not text.lstrip().startswith("{"):
        raise ValueError(f"it has {len(blocks)} fenced blocks; one is expected")
    try:
        value = json.loads(blocks[0] if blocks and not text.lstrip().startswith("{") else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if missing := FIELDS.keys() - value.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if more := value.keys() - FIELDS.keys():
        raise ValueError(
            f"it has fields that nobody asked for: {cut(', '.join(sorted(more)), 200)}"
        )
    for name in FIELDS:
        if not isinstance(value[name], str) or not value[name].strip():
            raise ValueError(f"{name} is not a text, or is blank")
        if any("\ud800" <= character <= "\udfff" for character in value[name]):
            raise ValueError(f"{name} holds half of a character (a surrogate)")
    return Diagnosis(**value)


WHY = {
    EMPTY: (
        "In {share} of its tasks this agent changed nothing at all. Below is one of those attempts. "
        "Propose a change that makes it less likely that the agent ends without an answer."
    ),
    STOCHASTIC: (
        "The model behind this agent answers differently each time, and so the agent solves a task "
        "in one attempt and fails it in the next. Below is one attempt. Propose a change that makes "
        "a good result likelier in spite of that."
    ),
    CONTEXT: (
        "In the attempt below the conversation outgrew the context of the model. Propose a change "
        "that lets the agent work on tasks as long as this one."
    ),
}
WHY_TASK = (
    "Below is an attempt in which the agent failed. Find out why, and propose a change to it."
)


def prompt(
    parent: Parent,
    entry: Entry,
    benchmark: Benchmark,
    private_tests: Callable[[Task], str] | None = None,
) -> str:
    """The whole question. Each part is cut to its own size, so it has at most about 280,000
    characters and what is hidden."""
    task, result = entry.task, entry.result
    empty = sum(r.empty for _, r in parent.attempts)
    why = WHY.get(entry.name, WHY_TASK).format(share=f"{empty} of {len(parent.attempts)}")
    parts = [
        f"You improve a coding agent. It is a program that solves programming tasks with the help of "
        f"a language model and of tools. {why} The change must help on tasks in general; a change "
        f"that only knows this task is worth nothing.",
        _part("The agent's code", code(parent.tree)),
        _part("The task that it was given", cut(benchmark.describe(task), TASK_CHARS)),
        _part("The log of its attempt", cut(result.log, LOG_CHARS)),
        _part("Its answer", cut(result.answer, ANSWER_CHARS) or "(none)"),
        _part("How it was graded", verdict(result)),
    ]
    if private_tests is not None:
        parts.append(_part("The tests, which the agent does not see", private_tests(task)))
    fields = "\n".join(f'- "{name}": {what}' for name, what in FIELDS.items())
    parts.append(
        "Answer with one JSON object and nothing else. It has these five fields, each a text:\n"
        + fields
    )
    return "\n\n".join(parts)


def code(tree: Tree) -> str:
    """The agent's files, the entry point first, up to CODE_CHARS; what is left out is named."""
    shown, left_out, room = [], [], CODE_CHARS
    for path in sorted(tree, key=lambda p: (p != ENTRY_POINT, p.startswith("tests/"), p)):
        text = tree[path].decode("utf-8", "replace")
        if len(text) <= room:
            shown.append(f"--- {path}\n{text}")
            room -= len(text)
        else:
            left_out.append(f"{path} ({len(text)} characters)")
    if left_out:
        shown.append(f"--- left out: {cut(', '.join(left_out), 2000)}")
    return "\n".join(shown)


def verdict(result: Result) -> str:
    """Solved or why not, and the tests by name."""
    failed = [name for name, passed in result.tests.items() if not passed]
    lines = ["solved" if result.solved else f"not solved: {cut(result.reason, 4000)}"]
    if result.tests:
        lines.append(f"{len(result.tests) - len(failed)} of {len(result.tests)} tests passed")
    lines += [f"failed: {name[:300]}" for name in failed[:FAILED_TESTS]]
    if len(failed) > FAILED_TESTS:
        lines.append(f"and {len(failed) - FAILED_TESTS} more failed")
    return "\n".join(lines)


def _part(title: str, text: str) -> str:
    return f"<<< {title}\n{text}\n>>> end of: {title}"
