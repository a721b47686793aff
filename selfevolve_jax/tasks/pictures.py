"""Questions about drawings, answered with visible steps: a task for a model small enough to make here.

A prompt is a picture of 48 x 48 pixels and a question, `count red?`; a response reads it row by row and
adds up, `2+0+3=5.`: the answer stands between the last `=` and the end mark. Or it answers at a glance,
`=5.`, which is shorter and often wrong. Glances and readings go wrong in many ways and right in one, so
the vote is right more often than a sample is, and than the likeliest response, which is the glance.

Faint pictures are the hard ones. Whoever writes the labels of the warm start (`noisy_examples`) may
misread them, each time by the same one unit too many: there errors gather, and the vote is wrong more
often than right.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, picture_tokens, png, smart_resize
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.drawings import (
    KINDS,
    SIDE,
    Drawing,
    Kind,
    Question,
    description,
    draw,
    questions,
)

END, ASKED = ".", "?"
_SPECIAL = ("<pad>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz+-*/=,: " + ASKED + END
IMAGE_TOKEN = _SPECIAL.index("<|image_pad|>")
SHOWN = "".join(_SPECIAL[1:])  # what a chat template writes for a picture
VOCABULARY = len(_SPECIAL) + len(_ALPHABET)
ANSWER = AnswerSpec(pattern=r"=([^=.]+)\.$", equivalence="exact")
# Every picture keeps its size: 48 x 48.
IMAGES = ImageConfig(min_pixels=SIDE**2, max_pixels=SIDE**2)
VISION = VisionConfig(
    d_model=64,
    n_layers=3,
    n_heads=2,
    d_ff=128,
    image_token=IMAGE_TOKEN,
    full_attention=(0, 1, 2),
    patch=8,
    window=SIDE,  # a picture is one window of 9 tokens, without padding
)
# How a model that learnt from `noisy_examples` is asked for a question of its own: by the picture
# alone, or by the picture, a question and its answer.
DIRECT, IN_CONTEXT = "ask:", "{question}{answer}.ask:"
LONGEST_RESPONSE = 12  # tokens, end mark included: 12,45=12:45.
_LONGEST_QUESTION = 11  # tokens: count gold?
_ROWS_A_KIND = 4_000  # of shapes, the fewest, there are 6,804 different pictures


@dataclass(frozen=True)
class PicturesConfig:
    """kinds: mixed in equal parts. hard: the part of the rows, trained on and held out alike, whose
    picture is faint."""

    kinds: tuple[Kind, ...] = KINDS
    hard: float = 0.0
    train_rows: int = 3000
    held_out_rows: int = 250

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UserError(
                f"task.kinds={' '.join(self.kinds)}: name some of {', '.join(KINDS)}, each once."
            )
        if not 0 <= self.hard <= 1:
            raise UserError(f"task.hard={self.hard} must be in [0, 1].")
        rows, most = self.train_rows + self.held_out_rows, _ROWS_A_KIND * len(self.kinds)
        if self.train_rows < 1 or self.held_out_rows < 1:
            raise UserError(
                f"task.train_rows={self.train_rows} and task.held_out_rows={self.held_out_rows} "
                "must be at least 1."
            )
        if rows > most:
            raise UserError(
                f"task.train_rows={self.train_rows} and task.held_out_rows={self.held_out_rows} are "
                f"{rows} different pictures of {len(self.kinds)} kind(s). Ask for at most {most}."
            )


@dataclass(frozen=True)
class Example:
    """The text after a drawing, and the response to learn; its END or ASKED included."""

    text: str
    response: str


def tokenizer():
    """One token a character, after the special ones, as a transformers fast tokenizer. Its chat
    template writes each picture as one image token and texts as they are."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((*_SPECIAL, *_ALPHABET))}
    chars = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    chars.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    chars.decoder = decoders.Fuse()
    # The end mark is plain text and no special token, as the answer is read up to it.
    return PreTrainedTokenizerFast(
        tokenizer_object=chars,
        pad_token="<pad>",
        unk_token="<pad>",
        additional_special_tokens=list(_SPECIAL[1:]),
        chat_template=(
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
            "{% for part in m.content %}{% if part.type == 'image' %}"
            + SHOWN
            + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
        ),
    )


def prompt_tokens(
    text: str, encoder: Any, vision: VisionConfig, images: ImageConfig
) -> tuple[int, ...]:
    """The tokens of a prompt with one picture of SIDE x SIDE before the text."""
    n = image_tokens(SIDE, vision, images)
    start, image, end, *rest = encoder.encode(SHOWN + text, add_special_tokens=False)
    return (start, *[image] * n, end, *rest)


def image_tokens(side: int, vision: VisionConfig, images: ImageConfig) -> int:
    """Of a picture of side x side pixels, in a prompt."""
    height, width = smart_resize(side, side, vision.unit, images.min_pixels, images.max_pixels)
    return picture_tokens((height // vision.patch, width // vision.patch), vision)


def fingerprint(image: Image.Image) -> str:
    """The same for pictures whose pixels are the same, however they are stored."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def shown_by(rows: Sequence[Row]) -> set[str]:
    """Fingerprints of the pictures of rows made by `load_task`."""
    files = (file for row in rows for file in row.images if isinstance(file, bytes))
    return {fingerprint(Image.open(io.BytesIO(file)).convert("RGB")) for file in files}


def load_task(
    config: PicturesConfig,
    seed: int,
    vision: VisionConfig = VISION,
    images: ImageConfig = IMAGES,
) -> Task:
    """Train and held-out rows without a picture in common. Held-out rows are drawn first, from a
    stream of their own, so that they do not change with the number of train rows. vision, images: of
    the policy that will look. Row.extra has "kind" and "faint"."""
    text = tokenizer()
    taken: set[str] = set()

    def rows(purpose: int, n: int) -> list[Row]:
        rng = np.random.default_rng([seed, purpose])
        start, found = len(taken), []
        # Each kind has its share of faint ones: the kinds take turns, and rounds of them are faint.
        turns = len(config.kinds)
        for i in range(n):
            faint = int((i // turns + 1) * config.hard) > int(i // turns * config.hard)
            drawing = _new(rng, config.kinds[i % turns], faint, taken)
            asked = questions(drawing)
            question = asked[rng.integers(len(asked))]
            tokens = prompt_tokens(question.text, text, vision, images)
            extra = {"kind": drawing.kind, "faint": faint}
            gold = question.solve()[1]
            shown = (png(drawing.image),)
            found.append(Row(start + i, SHOWN + question.text, tokens, gold, extra, shown))
        return found

    held_out = rows(1, config.held_out_rows)
    train = rows(2, config.train_rows)
    ends = tuple(text.encode(END + ASKED, add_special_tokens=False))
    return Task("pictures", train, held_out, text, ends, ANSWER, images=images)


def _new(rng: np.random.Generator, kind: Kind, faint: bool, taken: set[str]) -> Drawing:
    """A drawing that `taken` does not have, and now has."""
    while True:
        drawing = draw(rng, kind, faint)
        name = fingerprint(drawing.image)
        if name not in taken:
            taken.add(name)
            return drawing


def noisy_response(
    rng: np.random.Generator,
    question: Question,
    faint: bool,
    noise: float,
    glance: float = 0.0,
    misread: float = 0.0,
) -> str:
    """The steps and the answer. On a faint picture the first reading is, with probability `misread`,
    one of its choices too far. With probability `glance` there are no steps. Else a reading is, with
    probability `noise`, replaced by a random one of its choices, and later steps go on from there; then
    so is the answer itself."""
    readings = list(question.readings)
    if faint and rng.random() < misread:
        choices = list(question.choices[0])
        # The last choice has none after it; one too few is then as wrong.
        place = choices.index(readings[0])
        readings[0] = choices[place + 1] if place + 1 < len(choices) else choices[place - 1]
    if rng.random() < glance:
        return f"={question.solve(readings)[1]}{END}"
    for i, choices in enumerate(question.choices):
        if rng.random() < noise:
            readings[i] = int(choices[int(rng.integers(len(choices)))])
    steps, answer = question.solve(readings)
    if rng.random() < noise:
        answer = question.answers[int(rng.integers(len(question.answers)))]
    return f"{steps}={answer}{END}"


def noisy_examples(
    rng: np.random.Generator,
    drawing: Drawing,
    asking: float = 0.0,
    noise: float = 0.0,
    glance: float = 0.0,
    misread: float = 0.0,
) -> Iterator[Example]:
    """Examples to learn from, of one drawing, without end: its description, where it has one, then its
    questions in a random order, each with a response with noise in it, or with probability `asking` a
    question to be written, half of them DIRECT and half IN_CONTEXT; and so on.

    The errors are scattered, so a model of them is wrong often when it samples and seldom in its
    majority: that gap is what self-training lives on. Faint drawings are where it is not so."""
    asked, described = questions(drawing), description(drawing)
    while True:
        if described is not None:
            yield Example(described[0], described[1] + END)
        order = rng.permutation(len(asked))
        for here, after in zip(order, np.roll(order, -1), strict=True):
            first, other = asked[here], asked[after]
            if rng.random() < asking:
                given = IN_CONTEXT.format(question=first.text, answer=first.solve()[1])
                yield Example(given if rng.random() < 0.5 else DIRECT, other.text)
            else:
                response = noisy_response(rng, first, drawing.faint, noise, glance, misread)
                yield Example(first.text, response)


def new_drawings(
    rng: np.random.Generator, config: PicturesConfig, n: int, hard: float, avoid: set[str]
) -> list[Drawing]:
    """n drawings of the config's kinds in turn, of which each is faint with probability `hard`, and
    none is one to `avoid`."""
    most = _ROWS_A_KIND * len(config.kinds)
    if n + len(avoid) > most:
        raise UserError(
            f"policy.drawings={n}: beside {len(avoid)} pictures that are held out, {len(config.kinds)} "
            f"kind(s) have at most {most - len(avoid)} different ones. Ask for fewer."
        )
    taken = set(avoid)
    return [
        _new(rng, config.kinds[i % len(config.kinds)], bool(rng.random() < hard), taken)
        for i in range(n)
    ]


def longest_example(asking: bool, vision: VisionConfig = VISION) -> int:
    """Tokens of a picture and the longest example about it."""
    picture = image_tokens(SIDE, vision, IMAGES) + len(_SPECIAL) - 2
    given = len(IN_CONTEXT.format(question="", answer="12:45")) + _LONGEST_QUESTION
    answered = _LONGEST_QUESTION + LONGEST_RESPONSE
    return picture + (max(answered, given + _LONGEST_QUESTION) if asking else answered)
