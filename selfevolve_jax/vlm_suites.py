"""The benchmarks of MM-UPT (arXiv 2505.22453) with pictures: where each is on the Hugging Face hub, and
how its choices, pictures and gold answers are put into a problem.

A question with choices lists them by letter, and its gold is the letter; any other gold is a value.
Each figure here is the accuracy over all rows. We-Math's authors also score chains of steps, and
MathVerse's the reasoning within an answer: those figures are others, and not computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from selfevolve_jax.tasks.dataset import DataConfig, Form
from selfevolve_jax.tasks.prompts import IMAGE_MARKER
from selfevolve_jax.tasks.records import bad, shown

# MM-UPT's prompt: the question, then this.
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
# More than the released processor's largest image has tokens (12.8 megapixels, 28 x 28 a token): a
# question left out for its length would change what a figure means.
_MAX_PROMPT_TOKENS = 20_000
_LETTER = "Answer with the letter of the right choice."
_IN_IMAGE = "The question is written in the image."


def _suite(path: str, split: str, image_column: str, subset: str | None = None) -> DataConfig:
    return DataConfig(
        path=path,
        subset=subset,
        split=split,
        held_out_fraction=0.0,
        image_column=image_column,
        chat=True,
        suffix=SUFFIX,
        max_prompt_tokens=_MAX_PROMPT_TOKENS,
    )


def _mathvista(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    question, gold = _text(where, record, "question"), _text(where, record, "answer")
    choices = record.get("choices")
    if choices:
        found = [i for i, choice in enumerate(choices) if choice.strip() == gold]
        if not found:
            raise bad(where, f"'answer' is {shown(gold)}, which is none of its 'choices'")
        return _with_choices(question, choices), ascii_uppercase[found[0]]
    hints = {
        "integer": "Give a whole number.",
        "float": f"Give a number with {int(record.get('precision') or 1)} decimal place(s).",
        "list": "Give a list, as in [1, 2, 3].",
    }
    hint = hints.get(str(record.get("answer_type")), "")
    unit = f"Its unit is {record['unit']}." if record.get("unit") else ""
    return "\n".join(filter(None, (question, f"{hint} {unit}".strip()))), gold


def _mathvision(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    # One picture holds all the figures that <image1>, <image2> … refer to; it stands before the text,
    # and a mark that stands alone says no more than that.
    question = re.sub(
        r"(?m)^\s*<image1>\s*$|\s*<image1>\s*\Z", "", _text(where, record, "question")
    )
    question = re.sub(r"<image(\d+)>", r"figure \1", question).strip() or _IN_IMAGE
    gold, options = _text(where, record, "answer"), record.get("options")
    if not options:
        return question, gold
    letters = ascii_uppercase[: len(options)]
    if gold not in letters:
        raise bad(where, f"'answer' is {shown(gold)}, not one of the letters {letters}")
    if [option.strip() for option in options] == list(letters):
        return f"{question}\nThe choices {', '.join(letters)} are in the image. {_LETTER}", gold
    options = [re.sub(r"<image(\d+)>", r"figure \1", option) for option in options]
    return _with_choices(question, options), gold


def _mathverse(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    # The text has the choices in it. In the version "Vision Only" both are in the picture alone.
    question = str(record.get("question") or "").strip() or _IN_IMAGE
    if record.get("question_type") == "multi-choice":
        question = f"{question}\n{_LETTER}"
    return question, _text(where, record, "answer")


def _we_math(where: str, record: Mapping[str, Any]) -> tuple[str, str]:
    question, option = _text(where, record, "question"), _text(where, record, "option")
    # "A. 12; B. 15; C. No correct answer": a semicolon may stand within a choice, too.
    choices = re.split(r"\s*[;；]\s*(?=[A-H]\s*[.．、:)])", option.rstrip(";； "))
    letters = [choice[:1] for choice in choices]
    gold = _text(where, record, "answer").upper()
    if letters != list(ascii_uppercase[: len(letters)]) or gold not in letters:
        raise bad(
            where, f"'answer' is {shown(gold)}, and 'option' {shown(option)} has no such letter"
        )
    return "\n".join((question, *choices, _LETTER)), gold


def _with_choices(question: str, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {c}" for letter, c in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join((question, *lines, _LETTER))


def _text(where: str, record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise bad(where, f"{column!r} is {shown(value)}, not a text")
    # What looks like a place for an image is not one: all of these have one image, before the text.
    return value.replace(IMAGE_MARKER, " ").strip()


SUITES: dict[str, DataConfig] = {
    # 1,000 problems. The card (AI4Math/MathVista): pid, question, image (a path), decoded_image,
    # choices, unit, precision (float64), answer, question_type, answer_type, metadata, query; splits
    # testmini and test. lmms-eval finds the answer's text among the choices, and takes the letter from
    # its place.
    "mathvista": _suite("AI4Math/MathVista", "testmini", "decoded_image"),
    # 3,040 problems; testmini has 304 of them. The card (MathLLMs/MathVision): id, question, options,
    # image (a path), decoded_image, answer, solution, level, subject; splits test and testmini. In
    # lmms-eval an answer to a question with options is their letter, A to E.
    "mathvision": _suite("MathLLMs/MathVision", "test", "decoded_image"),
    "mathvision-mini": _suite("MathLLMs/MathVision", "testmini", "decoded_image"),
    # 3,940 problems: 788 in five versions each, with less and less in the text. The card
    # (AI4Math/MathVerse): configs testmini and testmini_text_only; sample_index, problem_index,
    # problem_version, question, image, answer, question_type (multi-choice, free-form), metadata,
    # query_wo, query_cot, question_for_eval. Readers of it on GitHub use query_wo for the version
    # Vision Only, whose question is in the picture.
    "mathverse": _suite("AI4Math/MathVerse", "testmini", "image", subset="testmini"),
    # 1,740 problems, of 525 chains of steps. Columns of a copy's dataset_info.json
    # (ttlynne/We-Math_cot_clean): ID, split, knowledge concept, question, option, answer, key, question
    # number, image_path. lmms-eval opens image_path as an image; readers on GitHub take option apart at
    # "; B." and find a letter in answer.
    "we-math": _suite("We-Math/We-Math", "testmini", "image_path"),
}

FORMS: dict[str, Form] = {
    "mathvista": Form(("choices", "unit", "precision", "answer_type"), _mathvista),
    "mathvision": Form(("options",), _mathvision),
    "mathvision-mini": Form(("options",), _mathvision),
    "mathverse": Form(("question_type",), _mathverse),
    "we-math": Form(("option",), _we_math),
}
