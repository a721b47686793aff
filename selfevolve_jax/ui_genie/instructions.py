"""A round's instructions beyond the pages' own: a language model says them in other words.

UI-Genie's paper lets a language model expand the instructions from its second round on (arXiv
2505.21496, section 3.3; prompt and counts unpublished). Of MiniWoB++ an instruction belongs to a page,
whose verdict is of its own words; so what is new here is how they are said, and the task stays the
same. Of fresh starts a share is asked for; what is refused keeps the page's own words, is counted by
name, and never mended:

    not_json            a line (or the whole answer) that is no JSON
    fields              no object with "number" and "instruction" alone
    unknown_number      a number that no instruction has
    twice               another answer to the same instruction
    empty, too_long     without a word; over MOST_CHARACTERS
    unprintable         on several lines, or with control characters
    special             what a prompt may not hold: `<` before a word, a tokenizer's special token
    lost_name           a name of the original (`names`) is not in it
    duplicate           known in this task already, but for case and punctuation
    unanswered          no answer to an instruction, or none that could be read
    refused_question    the endpoint refuses the question with all its instructions

Colours and other plain words are no names: that they stay the same is the writer's word alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ModelConfig
from selfevolve_jax.run_dir import disk_errors, write_json_atomic
from selfevolve_jax.ui_genie import contract, trajectory
from selfevolve_jax.ui_genie.environment import Broken, Observation, State
from selfevolve_jax.ui_genie.explore import Screens

INSTRUCTIONS, COUNTS = "instructions.jsonl", "instructions.json"
FIRST_ROUND = 2  # the first round's are the pages' own, as in the paper
MOST_CHARACTERS = 400
AT_ONCE = 8  # instructions of a question
_PICKED = 107  # purpose of random draws
_NO_REFUSAL = ("asked", "expanded")
By = Literal["pages", "agent", "endpoint"]
Source = Literal["page", "expanded", "retried"]
# Questions -> an answer each; None where the endpoint refuses the question.
Ask = Callable[[Sequence[str]], Sequence[str | None]]


@dataclass(frozen=True)
class InstructionConfig:
    """by: whose words a round's instructions are in from the second round on: the pages' own; or of a
    share of the fresh starts those of the agent, or of a model behind an endpoint. temperature: of the
    agent's words; the endpoint has its own."""

    by: By = "pages"
    share: float = 0.5
    temperature: float = 1.0
    endpoint: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise UserError(
                f"instructions.by={self.by!r} is unknown. Give one of {', '.join(get_args(By))}."
            )
        if not 0 < self.share <= 1:
            raise UserError(f"instructions.share={self.share} must be above 0, and at most 1.")
        if not self.temperature >= 0:
            raise UserError(f"instructions.temperature={self.temperature} must not be negative.")
        if self.by == "endpoint" and not self.endpoint.model.strip():
            raise UserError(
                "instructions.by=endpoint needs a model. Give --instructions.endpoint.model NAME, and "
                "--instructions.endpoint.base-url where it is not OpenAI's own."
            )


@dataclass(frozen=True)
class Instruction:
    """What a start is told. task, seed: its page. of: the page's own words. by: the model whose words
    they are, None for the page. round: which they were made for."""

    task: str
    seed: int
    text: str
    source: Source
    of: str
    by: str | None
    round: int

    @property
    def state(self) -> State:
        return State(self.task, self.seed)


class Worded:
    """Screens that tell some starts, and all that follows from these, other goals. The verdict stays
    the page's, of its own words."""

    def __init__(self, screens: Screens, goals: Mapping[State, str]) -> None:
        self._screens, self._goals = screens, dict(goals)

    def observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        seen = self._screens.observe(states)
        return [self._told(state, one) for state, one in zip(states, seen, strict=True)]

    def _told(self, state: State, seen: Observation | Broken) -> Observation | Broken:
        goal = self._goals.get(State(state.task, state.seed))
        return seen if goal is None or isinstance(seen, Broken) else replace(seen, goal=goal)


def own(
    starts: Sequence[State], screens: Screens, number: int, retried: Mapping[State, str]
) -> list[Instruction]:
    """Of every start whose page can be seen: the page's own words; of those in `retried`, the words
    that it had then. number: of the round."""
    found = []
    for start, seen in zip(starts, screens.observe(starts) if starts else (), strict=True):
        if not isinstance(seen, Broken):
            again = start in retried
            text, source = retried.get(start, seen.goal), "retried" if again else "page"
            page = (start.task, start.seed)
            found.append(Instruction(*page, text, source, seen.goal, None, number))
    return found


def make(
    folder: epath.Path,
    found: Sequence[Instruction],
    ask: Ask,
    by: str,
    share: float,
    seed: int,
    *,
    known: Iterable[tuple[str, str]],
    special: Sequence[str],
) -> str:
    """Expands a share of a round's fresh instructions and writes all of the round's; returns what the
    user is told. found: from `own`. known: (task, text) of what was told before. Else as `expand`."""
    fresh = [one for one in found if one.source == "page"]
    order = np.random.default_rng([seed, _PICKED]).permutation(len(fresh))
    wanted = [fresh[i] for i in sorted(order[: math.ceil(len(fresh) * share)])]
    texts: dict[str, list[str]] = {}
    for task, text in (*((one.task, one.of) for one in found), *known):
        texts.setdefault(task, []).append(text)
    made, counts = expand(wanted, ask, by, texts, special)
    said = {one.state: one for one in made}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / COUNTS, {"by": by, "counts": counts})
    # Last, so that a round that has them is whole.
    trajectory.write_lines(
        folder / INSTRUCTIONS, (asdict(said.get(one.state, one)) for one in found)
    )
    refused = ", ".join(f"{why} {n}" for why, n in sorted(counts.items()) if why not in _NO_REFUSAL)
    return (
        f"{len(made)} of {len(wanted)} instructions said in other words by {by}"
        f"{f'; refused: {refused}' if refused else ''}"
    )


def expand(
    wanted: Sequence[Instruction],
    ask: Ask,
    by: str,
    known: Mapping[str, Iterable[str]],
    special: Sequence[str] = (),
) -> tuple[list[Instruction], Counter[str]]:
    """(those of `wanted` that were said in other words, counts: "asked", "expanded", and every refusal
    by its name). by: names the model. known: by task, texts that are nothing new. special: what a
    prompt may not hold. `ask` is called once, with all questions."""
    seen = {task: {normalised(text) for text in texts} for task, texts in known.items()}
    parts = [wanted[i : i + AT_ONCE] for i in range(0, len(wanted), AT_ONCE)]
    made: list[Instruction] = []
    counts: Counter[str] = Counter(asked=len(wanted))
    answers = ask([question(part) for part in parts]) if parts else ()
    for part, answer in zip(parts, answers, strict=True):
        if answer is None:
            counts["refused_question"] += len(part)
            continue
        said = parse(answer, len(part), counts)
        counts["unanswered"] += len(part) - len(said)
        for i, text in sorted(said.items()):
            one = part[i]
            there = seen.setdefault(one.task, set())
            if (refused := refusal(text, one.of, there, special)) is not None:
                counts[refused] += 1
                continue
            there.add(normalised(text))
            counts["expanded"] += 1
            made.append(replace(one, text=text.strip(), source="expanded", by=by))
    return made, +counts


def question(asked: Sequence[Instruction]) -> str:
    """The prompt: each instruction with a number, from 1 on, and its task."""
    lines = [f"{i}. [{one.task}] {contract.plain(one.of)}" for i, one in enumerate(asked, 1)]
    return "\n".join(
        (
            "These are instructions to an assistant that operates a screen, each with its number and, "
            "in brackets, the app that it is for.",
            "Say each of them in other words, as another person might. It must ask for exactly the "
            "same, and every name, number and quoted text must stay as it is written.",
            "",
            *lines,
            "",
            "Answer with one JSON object a line for each instruction, and nothing else:",
            '{"number": 1, "instruction": "..."}',
        )
    )


def parse(answer: str, n: int, counts: Counter[str]) -> dict[int, str]:
    """{place in the question, from 0 on: text} of an answer to n instructions: JSON objects, one a line
    or in one list. What cannot be read is left out, and counted by name."""
    said: dict[int, str] = {}
    for record in _records(answer, counts):
        if not isinstance(record, dict) or record.keys() != {"number", "instruction"}:
            counts["fields"] += 1
            continue
        number, text = record["number"], record["instruction"]
        if type(number) is not int or not isinstance(text, str):
            counts["fields"] += 1
        elif not 1 <= number <= n:
            counts["unknown_number"] += 1
        elif number - 1 in said:
            counts["twice"] += 1
        else:
            said[number - 1] = text
    return said


def refusal(
    text: str, original: str, known: Iterable[str], special: Sequence[str] = ()
) -> str | None:
    """Why a text is not taken for another way to say the original; None where it is. known: normalised
    texts."""
    text = text.strip()
    if not normalised(text):
        return "empty"
    if len(text) > MOST_CHARACTERS:
        return "too_long"
    if not text.isprintable():
        return "unprintable"
    plain = contract.plain(text)
    if plain != " ".join(text.split()) or any(token in plain for token in special):
        return "special"
    if not all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names(original)):
        return "lost_name"
    return "duplicate" if normalised(text) in known else None


def names(text: str) -> list[str]:
    """What another way to say the text must keep, letter by letter: what stands in double quotes, and
    words with a capital or a digit, but for the capital of a sentence's first word."""
    quoted = re.findall(r'"([^"]+)"', text)
    rest = re.sub(r'"[^"]*"', '""', text)
    found = re.finditer(r"(?P<first>(?:^|[.!?:]\s+)(?=\w))?(?P<word>\w+)", rest)
    words = [
        match["word"]
        for match in found
        if re.search(r"[A-Z\d]", match["word"][1:] if match["first"] is not None else match["word"])
        or match["word"].isdigit()
    ]
    return list(dict.fromkeys((*(q.strip() for q in quoted if q.strip()), *words)))


def normalised(text: str) -> str:
    """What is the same of two texts that differ in case, spaces and punctuation alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def ask_endpoint(config: ModelConfig) -> Ask:
    """Asks a model behind an endpoint. UserError where it gives no answer in all its tries."""
    from selfevolve_jax.llm.endpoint import Down, Endpoint, Refused

    def ask(questions: Sequence[str]) -> list[str | None]:
        answers: list[str | None] = []
        endpoint = Endpoint(config)
        try:
            for each in questions:
                try:
                    messages = [{"role": "user", "content": each}]
                    answers.append(endpoint.ask({"messages": messages}).text)
                except Refused:
                    answers.append(None)
                except Down as error:
                    raise UserError(
                        f"instructions: {error}. Fix: start the endpoint again; --resume goes on from "
                        "this round."
                    ) from error
        finally:
            endpoint.close()
        return answers

    return ask


def check_endpoint(config: ModelConfig) -> None:
    """UserError where the endpoint does not answer, before hours are spent on the way to it."""
    from selfevolve_jax.llm.endpoint import Endpoint

    endpoint = Endpoint(config)
    try:
        endpoint.preflight()
    finally:
        endpoint.close()


def read(folder: epath.Path) -> list[Instruction]:
    """What `make` wrote. UserError naming file, line and field for what is missing or damaged."""
    path, take = folder / INSTRUCTIONS, trajectory.take
    found = []
    for where, record in trajectory.read_lines(path, "go on with the run: it is made anew"):
        trajectory.refuse_unknown(where, record, Instruction)
        source = take(where, record, "source", str)
        if source not in get_args(Source):
            raise UserError(f"{where}: source {source!r} is unknown. Fix: mend or remove it.")
        found.append(
            Instruction(
                task=take(where, record, "task", str),
                seed=take(where, record, "seed", int),
                text=take(where, record, "text", str),
                source=source,
                of=take(where, record, "of", str),
                by=take(where, record, "by", str, None),
                round=take(where, record, "round", int),
            )
        )
    return found


def _records(answer: str, counts: Counter[str]) -> list[object]:
    """The values of one JSON list, else of every line."""
    try:
        whole = json.loads(answer)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        return whole
    found = []
    for line in filter(str.strip, answer.splitlines()):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            counts["not_json"] += 1
    return found
