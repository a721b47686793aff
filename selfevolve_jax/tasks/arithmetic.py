"""Chained arithmetic modulo 10 with visible steps: a task small enough to learn on a laptop.

A prompt is `3+4*2-1*7=`, read strictly from left to right. A response writes every intermediate
result and the end mark: 3+4=7, 7*2=4, 4-1=3, 3*7=1, so `7431.`; the answer is the last digit before
the mark. There is a chain of thought, and answers that ignore the prompt are possible,
which is all that self-training needs to rise, or to collapse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task

END = "."
_ALPHABET = "0123456789+-*=" + END
_OPS = "+-*"
ANSWER = AnswerSpec(pattern=r"(\d)\.$", equivalence="exact")


@dataclass(frozen=True)
class ArithmeticConfig:
    """numbers: how many digits a chain has; several values are mixed in equal parts. A response is
    numbers − 1 results and the end mark.

    width: 0, or the number of digits that every prompt is padded to with `=`; results are then
    written `7=4=3=1.` So each step stands at the same distance from its operand whatever the chain's
    length, and something of what is learnt on short chains carries over to longer ones.
    """

    numbers: tuple[int, ...] = (5,)
    width: int = 0
    train_rows: int = 8000
    held_out_rows: int = 256

    def __post_init__(self) -> None:
        if not self.numbers or min(self.numbers) < 2:
            raise UserError(f"task.numbers={self.numbers}: a chain needs at least 2 numbers.")
        if self.width and self.width < max(self.numbers):
            raise UserError(
                f"task.width={self.width} is less than the longest chain of "
                f"task.numbers={self.numbers}. Use at least {max(self.numbers)}, or 0 for no padding."
            )
        if self.train_rows < 1 or self.held_out_rows < 1:
            raise UserError(
                f"task.train_rows={self.train_rows} and task.held_out_rows={self.held_out_rows} "
                "must be at least 1."
            )


def tokenizer():
    """One token a character, pad and end included, as a transformers fast tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0} | {c: i + 1 for i, c in enumerate(_ALPHABET)}
    chars = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    chars.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    chars.decoder = decoders.Fuse()
    # The end mark is plain text and no special token, as the answer is read up to it.
    return PreTrainedTokenizerFast(tokenizer_object=chars, pad_token="<pad>", unk_token="<pad>")


def solve(chain: str, results: Sequence[int | None] | None = None) -> str:
    """The intermediate results of `3+4*2=`-like text. Where `results` holds a digit, that step's
    result is replaced by it and the later steps go on from there."""
    total, written = int(chain[0]), ""
    for i in range((len(chain) - 1) // 2):
        op, digit = chain[2 * i + 1], int(chain[2 * i + 2])
        total = (total + digit if op == "+" else total - digit if op == "-" else total * digit) % 10
        replaced = results[i] if results is not None else None
        total = total if replaced is None else replaced
        written += str(total)
    return written


def draw_chain(rng: np.random.Generator, numbers: int) -> str:
    digits, ops = rng.integers(0, 10, numbers), rng.integers(0, len(_OPS), numbers - 1)
    return (
        str(digits[0])
        + "".join(_OPS[o] + str(d) for o, d in zip(ops, digits[1:], strict=True))
        + "="
    )


def _rows(rng: np.random.Generator, config: ArithmeticConfig, n: int, taken: set[str], encode):
    """n rows with prompts that no other row has; the lengths take turns."""
    turns = len(config.numbers)
    for k in config.numbers:
        space = 10**k * len(_OPS) ** (k - 1)
        # The text of k digits, k − 1 signs and "=" is 2k long.
        asked = sum(len(chain) == 2 * k for chain in taken)
        asked += sum(-(-(n - i) // turns) for i, same in enumerate(config.numbers) if same == k)
        if asked > space // 2:
            raise UserError(
                f"task.numbers={config.numbers}: there are {space} different chains of {k} numbers, "
                f"too few for {asked} rows of them. Ask for at most {space // 2}, or for longer "
                "chains."
            )
    rows = []
    while len(rows) < n:
        chain = draw_chain(rng, config.numbers[len(rows) % turns])
        if chain not in taken:
            taken.add(chain)
            prompt, _ = layout(chain, "", config.width)
            rows.append(Row(len(taken) - 1, prompt, encode(prompt), gold=solve(chain)[-1]))
    return rows


def load_task(config: ArithmeticConfig, seed: int) -> Task:
    """Train and held-out rows without a prompt in common. Held-out rows are drawn first, from a
    stream of their own, so that they do not change with the number of train rows."""
    text = tokenizer()

    def encode(prompt: str) -> tuple[int, ...]:
        return tuple(text.encode(prompt, add_special_tokens=False))

    taken: set[str] = set()
    (end,) = encode(END)
    held_out = _rows(np.random.default_rng([seed, 1]), config, config.held_out_rows, taken, encode)
    train = _rows(np.random.default_rng([seed, 2]), config, config.train_rows, taken, encode)
    return Task("arithmetic", train, held_out, text, (end,), ANSWER)


def layout(chain: str, results: str, width: int) -> tuple[str, str]:
    """The prompt and the response of a chain, as `ArithmeticConfig.width` wants them."""
    if not width:
        return chain, results + END
    return chain.ljust(2 * width, "="), "=".join(results) + END


def response_tokens(config: ArithmeticConfig) -> int:
    """Tokens of the longest response, end mark included."""
    return max(config.numbers) if not config.width else 2 * (max(config.numbers) - 1)


def noisy_examples(
    rng: np.random.Generator,
    numbers: Sequence[int],
    noise: float,
    n: int,
    avoid: set[str],
    width: int = 0,
) -> list[tuple[str, str]]:
    """n (prompt, response) pairs to learn from. With probability `noise` a step's result is replaced
    by a random digit. The errors are scattered, so a model of them is wrong often when it samples and
    seldom in its majority: that gap is what self-training lives on."""
    pairs = []
    while len(pairs) < n:
        k = numbers[len(pairs) % len(numbers)]
        chain = draw_chain(rng, k)
        if layout(chain, "", width)[0] in avoid:
            continue
        wrong, digits = rng.random(k - 1) < noise, rng.integers(0, 10, k - 1)
        results = [int(d) if w else None for w, d in zip(wrong, digits, strict=True)]
        pairs.append(layout(chain, solve(chain, results), width))
    return pairs
