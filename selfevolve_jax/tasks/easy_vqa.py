"""The questions of easy-VQA (extra `easy-vqa`, MIT): pictures of 64 x 64 pixels that nobody here drew,
each with one coloured shape on a pale ground, asked for its shape or its colour in one of 19 wordings.

Questions answered by yes or no, which a guess gets right half the time, are left out; 10,168 about the
package's 4,000 train pictures and 2,537 about its 1,000 test pictures stay. Their answers are one word,
so responses have steps before it that the package does not: `circle, blue = blue.`, both facts, then
the one asked for. Both are in its questions ("what color is the circle?") and their answers.

    test pictures                       held-out rows
    train pictures below FIRST_WARM     training rows
    train pictures from FIRST_WARM on   what a base learns from (`warm_start`, `noisy_examples`)
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, load_image
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.pictures import SHOWN, Example

SIDE = 64  # pixels
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
CHOICES = {"shape": SHAPES, "color": COLOURS}
END, ASKED = ".", "?"
# The ids of the special tokens are those of the pictures task, so one tower serves both.
_SPECIAL = ("<pad>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
_WORDS = ("what", "is", "the", "shape", "color", "of", "in", "image", "does", "contain", "present")
_TEXT = (*_WORDS, *SHAPES, *COLOURS, "ask", ",", "=", ASKED, END)
VOCABULARY = len(_SPECIAL) + len(_TEXT)
ANSWER = AnswerSpec(pattern=r"= ([^=.]+)\.$", equivalence="exact")
# Every picture keeps its size.
IMAGES = ImageConfig(min_pixels=SIDE**2, max_pixels=SIDE**2)
# A picture is one window of 16 tokens, without padding.
VISION = replace(pictures.VISION, window=SIDE)
# How a model that learnt from `noisy_examples` is asked for a question of its own.
DIRECT, IN_CONTEXT = "ask", "{question} {answer}. ask"
LONGEST_RESPONSE = 8  # tokens, end mark included: what is the color of the rectangle?
FIRST_WARM = 2000
_YES_NO = ("yes", "no")


@dataclass(frozen=True)
class EasyVQAConfig:
    """How many of the package's questions are trained on and held out, picked by the seed; several may
    be about one picture. There are 5,034 and 2,537."""

    train_rows: int = 4000
    held_out_rows: int = 250

    def __post_init__(self) -> None:
        for name in ("train_rows", "held_out_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"task.{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True)
class Question:
    """picture: its number in its part of the package."""

    picture: int
    text: str
    answer: str

    @property
    def kind(self) -> Literal["shape", "color"]:
        """What it asks for."""
        return "shape" if self.answer in SHAPES else "color"


@dataclass(frozen=True, eq=False)
class Drawing:
    """An RGB picture of SIDE x SIDE pixels, what the package says of it, and what it asks about it."""

    image: Image.Image
    shape: str
    color: str
    questions: tuple[Question, ...]


def tokenizer():
    """A token for each word and mark, after the special ones, as a transformers fast tokenizer with
    the pictures task's chat template. What it decodes is written as the package writes: no space before
    a mark. It has no token for other words, and raises an exception for them; see `encode`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate((*_SPECIAL, *_TEXT))}))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    words.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    # The end marks are plain text and no special tokens, as the answer is read up to them.
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        additional_special_tokens=list(_SPECIAL[1:]),
        chat_template=pictures.tokenizer().chat_template,
    )


def encode(text: str, encoder: Any) -> list[int]:
    """The tokens of a text. UserError for a word that has none."""
    left = re.sub("|".join(map(re.escape, _SPECIAL)), " ", text)
    unknown = [word for word in re.findall(r"\w+|[^\w\s]", left) if word not in _TEXT]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} in {text!r} has no token: the easy-vqa task knows the words and marks of "
            f"its own questions and answers only. Use {', '.join(_TEXT[:-4])} and , = ? ."
        )
    return encoder.encode(text, add_special_tokens=False)


def prompt_tokens(
    text: str, encoder: Any, vision: VisionConfig, images: ImageConfig
) -> tuple[int, ...]:
    """The tokens of a prompt with one picture of SIDE x SIDE before the text."""
    start, image, end, *rest = encode(SHOWN + text, encoder)
    return (start, *[image] * pictures.image_tokens(SIDE, vision, images), end, *rest)


def load_task(
    config: EasyVQAConfig,
    seed: int,
    vision: VisionConfig = VISION,
    images: ImageConfig = IMAGES,
) -> Task:
    """Train and held-out rows without a picture in common. The parts are shuffled by streams of their
    own, so that neither changes with the other's size, and more rows go on where fewer end. vision,
    images: of the policy that will look. Row.extra has "kind", "shape" or "color". Task.counts has
    "yes_no". UserError: extra not installed or damaged, more rows asked for than there are."""
    text = tokenizer()
    yes_no = 0

    def rows(part: Literal["train", "test"], name: str, first: int) -> list[Row]:
        nonlocal yes_no
        asked, files, dropped = _read(part)
        yes_no += dropped
        if part == "train":
            asked = [question for question in asked if question.picture < FIRST_WARM]
        wanted = getattr(config, name)
        if wanted > len(asked):
            raise UserError(
                f"task.{name}={wanted}: easy-vqa has {len(asked)} such questions. Ask for at most "
                f"{len(asked)}."
            )
        order = np.random.default_rng([seed, part == "train"]).permutation(len(asked))
        picked = [asked[j] for j in order[:wanted]]
        tokens = {t: prompt_tokens(t, text, vision, images) for t in {q.text for q in picked}}
        shown = {number: _picture(files[number])[0] for number in {q.picture for q in picked}}
        return [
            Row(
                id=first + i,
                prompt=SHOWN + q.text,
                prompt_tokens=tokens[q.text],
                gold=q.answer,
                extra={"kind": q.kind},
                images=(shown[q.picture],),
            )
            for i, q in enumerate(picked)
        ]

    held_out = rows("test", "held_out_rows", 0)
    train = rows("train", "train_rows", len(held_out))
    ends = tuple(encode(END + ASKED, text))
    counts = {"yes_no": yes_no}
    return Task("easy-vqa", train, held_out, text, ends, ANSWER, counts, images)


def warm_start(n: int) -> list[Drawing]:
    """The first n pictures that are kept for a base to learn from, of those whose shape and colour the
    package's questions tell. UserError if there are fewer, or as `load_task`."""
    asked, files, _ = _read("train")
    of: dict[int, list[Question]] = {}
    for question in asked:
        if question.picture >= FIRST_WARM:
            of.setdefault(question.picture, []).append(question)
    known = {number: facts(own) for number, own in of.items()}
    numbers = sorted(number for number, told in known.items() if len(told) == len(CHOICES))
    if n > len(numbers):
        raise UserError(
            f"policy.drawings={n}: easy-vqa has {len(numbers)} pictures to learn from whose shape and "
            f"colour are known. Ask for at most {len(numbers)}."
        )
    return [Drawing(_picture(files[i])[1], **known[i], questions=tuple(of[i])) for i in numbers[:n]]


def facts(questions: Sequence[Question]) -> dict[str, str]:
    """{"shape", "color"} of a picture, each where the questions or their answers name one and no
    other."""
    named = {word for q in questions for word in (*re.findall(r"\w+", q.text), q.answer)}
    found = {kind: sorted(named.intersection(words)) for kind, words in CHOICES.items()}
    return {kind: words[0] for kind, words in found.items() if len(words) == 1}


def noisy_response(
    rng: np.random.Generator,
    drawing: Drawing,
    question: Question,
    noise: float,
    glance: float = 0.0,
) -> str:
    """The steps and the answer; with probability `glance` the answer alone. With probability `noise` a
    fact is replaced by a random one of its kind, and the answer goes on from there; then so is the
    answer itself."""
    if rng.random() < glance:
        return f"= {question.answer}{END}"

    def read(kind: str, right: str) -> str:
        choices = CHOICES[kind]
        return choices[int(rng.integers(len(choices)))] if rng.random() < noise else right

    steps = {"shape": read("shape", drawing.shape), "color": read("color", drawing.color)}
    answer = read(question.kind, steps[question.kind])
    return f"{steps['shape']}, {steps['color']} = {answer}{END}"


def noisy_examples(
    rng: np.random.Generator,
    drawing: Drawing,
    asking: float = 0.0,
    noise: float = 0.0,
    glance: float = 0.0,
    misread: float = 0.0,
) -> Iterator[Example]:
    """Examples to learn from, of one drawing, without end: the package's questions in turn, in a random
    order, each with a response with noise in it, or with probability `asking` another of its questions
    to be written, half of them DIRECT and half IN_CONTEXT. A drawing with a single question is asked
    for it, DIRECT. misread: there are no faint drawings here."""
    asked = drawing.questions
    while True:
        order = rng.permutation(len(asked))
        for here, after in zip(order, np.roll(order, -1), strict=True):
            first, other = asked[here], asked[after]
            if rng.random() < asking:
                given = IN_CONTEXT.format(question=first.text, answer=first.answer)
                text = given if rng.random() < 0.5 and first is not other else DIRECT
                yield Example(text, other.text)
            else:
                yield Example(first.text, noisy_response(rng, drawing, first, noise, glance))


def longest_example(asking: bool, vision: VisionConfig = VISION) -> int:
    """Tokens of a picture and the longest example about it."""
    picture = pictures.image_tokens(SIDE, vision, IMAGES) + len(_SPECIAL) - 2
    question = LONGEST_RESPONSE
    answered = picture + question + len(("shape", ",", "color", "=", "answer", END))
    given = question + len(("answer", END, DIRECT))
    return max(answered, picture + given + question) if asking else answered


def _read(part: Literal["train", "test"]) -> tuple[list[Question], Mapping[int, str], int]:
    """The package's questions that are not answered by yes or no, its pictures' files by number, and
    how many questions were left out."""
    if importlib.util.find_spec("easy_vqa") is None:
        raise UserError(
            "the easy-vqa task: easy-vqa is not installed; fix: uv sync --extra easy-vqa"
        )
    import easy_vqa

    try:
        if part == "train":
            asked, files = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
        else:
            asked, files = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    except (OSError, ValueError, LookupError) as error:  # a missing file, damaged JSON
        raise _damaged(str(error)) from error
    questions = [Question(i, t, a) for t, a, i in zip(*asked, strict=True) if a not in _YES_NO]
    for question in questions:
        if question.picture not in files:
            raise _damaged(f"{part} picture {question.picture}, which it asks about, is missing")
        if question.answer not in (*SHAPES, *COLOURS):
            raise _damaged(f"it answers {question.text!r} by {question.answer!r}")
    return questions, files, len(asked[0]) - len(questions)


def _picture(file: str) -> tuple[bytes, Image.Image]:
    """The file's bytes, and the picture in them."""
    try:
        data = Path(file).read_bytes()
        image = load_image(data)
    except (OSError, UserError) as error:
        raise _damaged(f"{file}: {error}") from error
    if image.size != (SIDE, SIDE):
        raise _damaged(f"{file} has {image.width} x {image.height} pixels, not {SIDE} x {SIDE}")
    return data, image


def _damaged(what: str) -> UserError:
    return UserError(
        f"the easy-vqa package is damaged, or another than 1.0: {what}. Fix: "
        "uv sync --extra easy-vqa --reinstall-package easy-vqa"
    )
