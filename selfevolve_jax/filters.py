"""Which questions that a model wrote itself are kept: duplicates, those that nothing could answer, and
those whose vote says too little (MM-UPT, arXiv 2505.22453, whose own filters were never published)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selfevolve_jax.errors import UserError
from selfevolve_jax.labels import Label
from selfevolve_jax.tasks.prompts import IMAGE_MARKER

# A question mark, a blank to fill, or a verb that sets a task.
ASKS = (
    r"[?？؟]|__|\b(?i:find|calculate|compute|determine|evaluate|solve|estimate|count|name|give|state|"
    r"prove|show that|express|identify|work out|which|what|how (?:many|much|long|far))\b"
)
_APOSTROPHES = str.maketrans({"’": "'", "ʼ": "'", "`": "'"})
_REFUSAL = re.compile(
    r"\bas an? (?:ai|language model|assistant)\b"
    r"|\bi(?: am|'m)(?: sorry| afraid| unable| not able)\b"
    r"|\bi (?:can ?not|can't|could not|couldn't|won't|do not|don't) (?:\w+ )?"
    r"(?:see|view|help|assist|create|write|generate|provide|answer|determine|access|have)\b"
    r"|\bunable to (?:see|view|create|write|generate|provide|answer|assist)\b"
)
_PICTURE = r"(?:image|picture|figure|diagram|photo|chart|graph)"
_MISSING = re.compile(
    r"\b(?:not enough|insufficient|missing|lacks?|lacking|without (?:more|further|additional)) "
    r"(?:the )?(?:necessary |required )?(?:information|data|details|context)\b"
    r"|\b(?:information|data|details?|values?|(?:image|picture|figure)) "
    r"(?:is|are) (?:missing|incomplete|blank|unreadable|unclear|illegible)\b"
    r"|\b(?:not|isn't|aren't) (?:\w+ )?(?:given|provided|shown|specified|visible|stated|labell?ed)"
    rf" (?:in|by|on) (?:the|this|any|an?) {_PICTURE}\b"
    r"|\bcan(?: ?not|'t) be (?:determined|answered|seen|read|inferred|identified) (?:from|in|without)\b"
    rf"|\b(?:no|without) {_PICTURE} (?:is |was )?(?:provided|given|shown|attached)\b"
)
# What a person would not call another question: case, spaces, dollars round formulas, the last mark.
_IGNORED = re.compile(r"\$|\\[()\[\],;!]|\*\*|[`\"“”]")
_PREFIX = re.compile(r"^(?:new )?(?:question|problem)\s*\d*\s*[:.)]\s*")
# What a token that ends within a character leaves.
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class FilterConfig:
    """Which of the written questions are dropped.

    duplicates: of questions about the same images keep the first of each text ("exact"), or of each
      text as `normalised` ("normalised"), or all ("keep").
    against_source: drop a question that is, in the same sense, one of the source's about these images.
    unanswerable: drop what is no question that the image could answer, see `unanswerable`.
    asks: a regular expression that a text holds if it asks something; "" takes any text for a
      question, as a model with question forms of its own needs.
    """

    duplicates: Literal["keep", "exact", "normalised"] = "normalised"
    against_source: bool = True
    unanswerable: bool = True
    asks: str = ASKS

    def __post_init__(self) -> None:
        try:
            re.compile(self.asks)
        except re.error as error:
            raise UserError(
                f"filters.asks={self.asks!r} is no regular expression: {error}"
            ) from error


@dataclass(frozen=True)
class Candidate:
    """A written question. images: what tells its images from others', the same for the same ones.
    source_questions: what the source asks about them. stopped: False where the limit cut the text."""

    question: str | None
    images: tuple[str, ...]
    source_questions: tuple[str, ...] = ()
    stopped: bool = True


def normalised(question: str) -> str:
    """Equal for questions that differ in case, white space, Unicode form, dollar signs, quotes, a
    heading such as "Question:", or the mark they end on. Signs inside a formula count."""
    text = unicodedata.normalize("NFKC", question).casefold()
    text = " ".join(_IGNORED.sub(" ", text).split())
    return _PREFIX.sub("", text).rstrip(" .?:;。？")


def unanswerable(question: str, asks: str = ASKS) -> str | None:
    """Why no image could answer this, or None: "empty" (no letter or digit), "refusal" (the model says
    that it cannot, in place of asking), "missing_information" (the text says that the image does not
    show what is needed), "no_question" (nothing of `asks`, where that is given)."""
    if not any(character.isalnum() for character in question):
        return "empty"
    text = " ".join(question.translate(_APOSTROPHES).casefold().split())
    if _REFUSAL.search(text):
        return "refusal"
    if _MISSING.search(text):
        return "missing_information"
    return "no_question" if asks and not re.search(asks, question) else None


def filter_questions(
    candidates: Sequence[Candidate],
    config: FilterConfig,
    markers: Sequence[str] = (IMAGE_MARKER,),
) -> tuple[list[int], dict[str, int]]:
    """The indices of those kept, in order, and how many each filter removed, by its name; a question
    counts for the first that removes it.

    Always removed: "cut_short" (the text never ended), "unread" (no question could be read in it, or
    not all of its characters are whole), "marker" (it holds one of `markers`, which would stand for
    more than text in a prompt). Then the reasons of `unanswerable`, "same_as_source" and "duplicate",
    as config says.
    """
    kept: list[int] = []
    removed: Counter[str] = Counter()
    seen: set[tuple[tuple[str, ...], str]] = set()

    def key(question: str) -> str:
        return question.strip() if config.duplicates == "exact" else normalised(question)

    def why(candidate: Candidate) -> str | None:
        question = candidate.question
        if not candidate.stopped:
            return "cut_short"
        if question is None or _BROKEN.search(question):
            return "unread"
        if any(marker in question for marker in markers):
            return "marker"
        reason = unanswerable(question, config.asks) if config.unanswerable else None
        if reason is not None:
            return reason
        if not question.strip():  # no data set takes it
            return "empty"
        if config.against_source and key(question) in map(key, candidate.source_questions):
            return "same_as_source"
        mine = (candidate.images, key(question))
        if config.duplicates != "keep" and mine in seen:
            return "duplicate"
        seen.add(mine)
        return None

    for index, candidate in enumerate(candidates):
        reason = why(candidate)
        if reason is None:
            kept.append(index)
        else:
            removed[reason] += 1
    return kept, dict(removed)


def check_votes(low: float, high: float) -> None:
    """UserError for bounds that are not 0 <= low <= high <= 1."""
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"the votes to keep lie between low={low} and high={high}: give 0 <= low <= high <= 1, "
            "such as 0.3 and 0.95"
        )


def filter_votes(
    questions: Sequence[tuple[int, str]],
    labels: Mapping[int, Label],
    low: float,
    high: float,
) -> tuple[list[int], dict[str, int]]:
    """Of (row id, text) the ids whose vote has low <= majority_fraction <= high, in order, and how many
    were removed as "too_scattered" (below, or no answer could be read), "too_unanimous" (above) or
    "unlabelled" (such as those whose prompt was too long to be labelled).

    text: a row's prompt, or the bare question within it. labels: of these rows, by
    `labels.read_labels`. UserError for bounds that are none, and for a label whose prompt does not
    contain the text.
    """
    check_votes(low, high)
    kept: list[int] = []
    removed: Counter[str] = Counter()
    for number, text in questions:
        label = labels.get(number)
        if label is None:
            removed["unlabelled"] += 1
            continue
        if text not in label.question:
            raise UserError(
                f"row {number} asks {text[:60]!r}, but was labelled as {label.question[:60]!r}: these "
                "labels are of other rows. Fix: label this data set."
            )
        if label.answer is None or label.majority_fraction < low:
            removed["too_scattered"] += 1
        elif label.majority_fraction > high:
            removed["too_unanimous"] += 1
        else:
            kept.append(number)
    return kept, dict(removed)
