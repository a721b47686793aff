"""Small sums in English for a pretrained model: worked examples, then a question.

    Question: What is 9 plus 2?
    Answer: 11

    Question: What is 6 plus 5?
    Answer:

A model continues the pattern, and the line's end ends its answer. So a response is a handful of
tokens, and a model that is right half of the time when it samples is right more often in its vote.
(SmolLM2-135M-Instruct, 4 examples, 16 samples: mean .45, majority .72. Worded "What is 9 plus 2? 11"
it was .13 and .13, "9 plus 2 equals 11" .38 and .53.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.prompts import Problem, stop_tokens, tokenize_rows

_WORDS = {"addition": "plus", "multiplication": "times"}
# The number that a response begins with, without leading zeros. Text that follows is no answer, and
# neither is the front of a longer number (7.5, 1,000, 3/4) or of one that the limit cut off.
ANSWER = AnswerSpec(pattern=r"\A *0*(\d+)(?!\d|[.,/:]\d)", equivalence="exact")


@dataclass(frozen=True)
class SumsConfig:
    """Both numbers go from 1 to `largest`. shots: worked examples before the question, the same for
    all. held_out_fraction: of the pairs that are no example."""

    operation: Literal["addition", "multiplication"] = "addition"
    largest: int = 9
    shots: int = 4
    held_out_fraction: float = 0.3

    def __post_init__(self) -> None:
        if self.largest < 2:
            raise UserError(f"task.largest={self.largest} must be at least 2.")
        if not 0 < self.held_out_fraction < 1:
            raise UserError(
                f"task.held_out_fraction={self.held_out_fraction} must be between 0 and 1."
            )
        pairs = self.largest * (self.largest + 1) // 2
        if not 0 <= self.shots <= pairs - 2:
            raise UserError(
                f"task.shots={self.shots} must be between 0 and {pairs - 2}: task.largest="
                f"{self.largest} gives {pairs} pairs, and training and held-out rows need one each."
            )


def solve(operation: str, a: int, b: int) -> int:
    return a + b if operation == "addition" else a * b


def response_tokens(config: SumsConfig) -> int:
    """Tokens of the longest right response where each digit is one: blank, digits, line's end."""
    return len(str(solve(config.operation, config.largest, config.largest))) + 2


def exercise(operation: str, a: int, b: int, solved: bool) -> str:
    """A question, or a worked example."""
    question = f"Question: What is {a} {_WORDS[operation]} {b}?\nAnswer:"
    return f"{question} {solve(operation, a, b)}\n\n" if solved else question


def load_task(
    config: SumsConfig, tokenizer: Any, seed: int, known_stops: Sequence[int] = ()
) -> Task:
    """The task for a policy that reads with `tokenizer` and ends at `known_stops`.

    Both orders of a pair (3 plus 4, 4 plus 3) are on the same side of the split, and the pairs of
    the worked examples on neither. A row's id tells its numbers, whatever the seed. Its other view,
    for the paired vote, is the other order; 3 plus 3 has none but itself, asked a second time.
    """
    rng = np.random.default_rng([seed, 5])
    pairs = [(a, b) for a in range(1, config.largest + 1) for b in range(a, config.largest + 1)]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    shown, rest = pairs[: config.shots], pairs[config.shots :]
    examples = "".join(
        exercise(config.operation, *(pair if rng.random() < 0.5 else pair[::-1]), solved=True)
        for pair in shown
    )
    cut = min(max(round(config.held_out_fraction * len(rest)), 1), len(rest) - 1)

    def number(a: int, b: int) -> int:
        return (a - 1) * config.largest + b - 1

    def rows(pairs: Sequence[tuple[int, int]]) -> list[Row]:
        asked = [order for pair in pairs for order in dict.fromkeys((pair, pair[::-1]))]
        problems = [
            Problem(
                number(a, b),
                examples + exercise(config.operation, a, b, solved=False),
                gold=str(solve(config.operation, a, b)),
            )
            for a, b in asked
        ]
        made = {row.id: row for row in tokenize_rows(tokenizer, problems, name=config.operation)[0]}
        other = {number(a, b): made.get(number(b, a)) for a, b in asked}
        return [
            replace(row, extra={"pair": view.hide_gold()} if view else {})
            for row, view in ((row, other[row.id]) for row in made.values())
        ]

    return Task(
        name=config.operation,
        train=rows(rest[cut:]),
        held_out=rows(rest[:cut]),
        tokenizer=tokenizer,
        stop_tokens=stop_tokens(tokenizer, known=(*known_stops, *_line_ends(tokenizer))),
        answer=ANSWER,
    )


def _line_ends(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end the line of an answer: some tokenizers make one of the empty line, too."""
    texts = tokenizer(["1\n", "1\n\nQuestion"], add_special_tokens=False)["input_ids"]
    ids = dict.fromkeys(i for text in texts for i in text)
    return tuple(i for i in ids if "\n" in tokenizer.decode([i]))
