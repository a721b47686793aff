"""reasoning-gym's procedural tasks by name (extra `reasoning-gym`).

Generation runs in a child process with a fixed PYTHONHASHSEED: several generators (word_ladder,
ransom_note, …) iterate over sets of strings, so that in a process with hash randomisation the same
seed gives other problems. A resumed run, or another host of the same run, must see the same ones.

Left out: reasoning-gym's own `score_answer`. Votes need one answer that two samples can share, so
rows carry `entry["answer"]` as gold and are judged like any other task. Where many answers are
right (countdown, n_queens, …) that gold undercounts; where the task gives none (graph_color, …),
gold is None and counted under "no_gold".
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import AnswerSpec, Task
from selfevolve_jax.tasks.prompts import BOXED_SUFFIX, Problem, stop_tokens, tokenize_rows

_DRAWS_PER_ROW = 4  # how many entries may be drawn for each row wanted before giving up


@dataclasses.dataclass(frozen=True)
class GymConfig:
    """The arguments of `gym_task`, as a recipe holds them. name: reasoning-gym's, such as
    "chain_sum". options: fields of that task's own configuration (difficulty)."""

    name: str
    size: int = 8000
    held_out: int = 256
    options: Mapping[str, int | float | str | bool] = dataclasses.field(default_factory=dict)
    suffix: str = BOXED_SUFFIX
    chat: bool = False
    system: str | None = None
    max_prompt_tokens: int = 1024
    pattern: str = "boxed"
    equivalence: Literal["exact", "math"] = "exact"


def load_task(
    config: GymConfig, tokenizer: Any, seed: int, known_stops: Sequence[int] = ()
) -> Task:
    """The task that `config` names; see `gym_task`. known_stops: tokens that the policy is known to
    end with, beside the tokenizer's own."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return gym_task(fields.pop("name"), tokenizer, seed=seed, known_stops=known_stops, **fields)


def gym_task(
    name: str,
    tokenizer: Any,
    *,
    size: int,
    held_out: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    suffix: str = BOXED_SUFFIX,
    chat: bool = False,
    system: str | None = None,
    max_prompt_tokens: int = 1024,
    pattern: str = "boxed",
    equivalence: Literal["exact", "math"] = "exact",
    known_stops: Sequence[int] = (),
) -> Task:
    """`size` training and `held_out` distinct held-out problems of reasoning-gym's task `name`.

    `options` are fields of that task's own configuration (difficulty). The two sets come from
    seeds of their own and share no question. Over-long prompts leave fewer rows, counted. Row ids
    count the training problems first, then the held-out ones; `Row.extra` holds the entry's `seed`,
    `index` and `metadata` as plain data. UserError: extra not installed, unknown task or option, an
    option that the task refuses, too few distinct questions.
    """
    if size < 1 or held_out < 0 or seed < 0:
        raise UserError(
            f"reasoning-gym task {name!r}: size={size} must be at least 1, held_out={held_out} and "
            f"seed={seed} at least 0"
        )
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(
            f"reasoning-gym task {name!r}: reasoning-gym is not installed; "
            "fix: uv sync --extra reasoning-gym"
        )
    # Entry i of a reasoning-gym data set is drawn from Random(seed + i), so that neighbouring seeds
    # share nearly all their entries: the seeds of the two sets must lie far apart.
    held_out_seed, train_seed = (
        int(s) for s in np.random.SeedSequence(seed).generate_state(2) // 2
    )
    made = _generate_in_child(
        {
            "name": name,
            "options": dict(options or {}),
            "held_out": {"seed": held_out_seed, "rows": held_out},
            "train": {"seed": train_seed, "rows": size},
        }
    )
    rows, dropped = {}, 0
    for part, first_id in (("train", 0), ("held_out", size)):
        problems = [
            Problem(first_id + i, e["question"], e["answer"], e["extra"])
            for i, e in enumerate(made[part])
        ]
        rows[part], over_long = tokenize_rows(
            tokenizer,
            problems,
            name=f"reasoning-gym task {name!r} ({part})",
            suffix=suffix,
            chat=chat,
            system=system,
            max_prompt_tokens=max_prompt_tokens,
        )
        dropped += over_long
    no_gold = sum(row.gold is None for part in rows.values() for row in part)
    return Task(
        name=f"reasoning-gym/{name}",
        train=rows["train"],
        held_out=rows["held_out"],
        tokenizer=tokenizer,
        stop_tokens=stop_tokens(tokenizer, chat=chat, known=known_stops),
        answer=AnswerSpec(pattern, equivalence),
        counts={"prompt_too_long": dropped, "no_gold": no_gold},
    )


def generate(request: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Entries {"question", "answer", "extra"} for both parts of a request, in this process.
    Held-out questions are distinct, and no training question is among them."""
    import reasoning_gym  # here: takes seconds
    from reasoning_gym.factory import DATASETS

    name, options = request["name"], request["options"]
    if name not in DATASETS:
        raise UserError(
            f"reasoning-gym has no task {name!r}; {_closest(name, DATASETS)}. "
            "Fix: one of the names that reasoning_gym.factory.DATASETS lists"
        )
    fields = {f.name for f in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for option in options:
        if option not in fields:
            raise UserError(
                f"reasoning-gym task {name!r} has no option {option!r}; "
                f"it has: {', '.join(sorted(fields)) or 'none'}"
            )
    made, held_out_questions = {}, set()
    for part in ("held_out", "train"):
        seed, wanted = request[part]["seed"], request[part]["rows"]
        entries: list[dict[str, Any]] = []
        if wanted:
            draws = _DRAWS_PER_ROW * wanted
            data = reasoning_gym.create_dataset(name, seed=seed, size=draws, **options)
            for index in range(draws):
                if len(entries) == wanted:
                    break
                entry = data[index]
                question = entry["question"]
                if question in held_out_questions:
                    continue
                if part == "held_out":
                    held_out_questions.add(question)
                answer = None if entry["answer"] is None else str(entry["answer"])
                extra = {"seed": seed, "index": index, "metadata": _plain(entry["metadata"])}
                entries.append({"question": question, "answer": answer, "extra": extra})
        if len(entries) < wanted:
            raise UserError(
                f"reasoning-gym task {name!r} with options {options} gives too few distinct "
                f"questions: {len(entries)} of the {wanted} {part} rows asked for, in "
                f"{_DRAWS_PER_ROW * wanted} draws; fix: ask for fewer rows, or widen its options"
            )
        made[part] = entries
    return made


def _generate_in_child(request: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    try:
        asked = json.dumps(request)
    except TypeError as error:
        raise UserError(
            f"reasoning-gym task {request['name']!r}: options={request['options']} must be plain "
            f"numbers, strings and lists ({error})"
        ) from error
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"from {__name__} import serve; serve()"],
        input=asked,
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
            "PYTHONIOENCODING": "utf-8",
        },
    )
    if child.returncode != 0:
        said = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise UserError(
            f"reasoning-gym task {request['name']!r} refused options {request['options']}: {said}"
        )
    reply = json.loads(child.stdout)
    if "error" in reply:
        raise UserError(reply["error"])
    return reply


def serve() -> None:
    """The child's side: a request as JSON on standard input, entries or {"error"} as JSON on
    standard output (a generator's own prints go to standard error)."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            reply: dict[str, Any] = generate(json.load(sys.stdin))
        except UserError as error:
            reply = {"error": str(error)}
    json.dump(reply, sys.stdout)


def _closest(name: str, names: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"close: {', '.join(close)}" if close else "no name is close"


def _plain(value: Any) -> Any:
    """JSON data for any metadata: tuples and sets become lists, keys strings, the rest its str."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(v) for v in value), key=repr)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
