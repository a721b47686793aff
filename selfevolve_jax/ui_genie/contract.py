"""The input contract: what an agent and a reward model are shown, to the token.

docs/ui_genie_contract.md says the same in one page. Training and scoring, agent and reward model all
come here for their prompts, so that none of them can see anything that another does not. The input
is UI-Genie's (arXiv 2505.21496, section 3.1): the goal, the history, the current screenshot and up to
so many earlier ones, and for the reward model a candidate action; its answer is the next token.

No jax is needed to make a View, only to tokenise one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import CLOSE_TAG, OPEN_TAG, Action, Frame, render, tool_schema

if TYPE_CHECKING:
    from models.config import VisionConfig
    from selfevolve_jax.images import ImageConfig
    from selfevolve_jax.ui_genie.environment import Element

Style = Literal["full", "short"]
POSITIVE, NEGATIVE = "<|+|>", "<|-|>"  # the reward model's two answers, tokens of their own
# "The task is complete" is an action like any other, always asked in these words.
COMPLETED = Action("terminate", "done", status="success")
# Of a call in the short style, between what is pressed and x,y; its list of elements has it there too.
PLACE = '","coordinate":['
IMAGE_MARKER = "<image>"  # tasks.prompts.IMAGE_MARKER, which a test holds it to
# Elements whose centres lie within so many pixels of height stand on one line (style short).
_LINE = 8
# Marks the candidate's place in a rendered prompt. Nothing that comes after it is anybody else's text.
_HERE = "candidate-stands-here"


@dataclass(frozen=True)
class View:
    """What an agent or a reward model may look at before a step.

    history: action_desc of all earlier steps, oldest first. screenshots: PNG files, oldest first, the
    current one last; each earlier one was seen before the step that it stands with, and there are no
    more than `images` of them (1 + `images` in all). frame: what coordinates are of, in pixels: the
    screen itself where it is small, else the resized screen. elements: on the current screen; only
    the short style lists them. UserError for no screenshot or for more than there were steps.
    """

    goal: str
    history: tuple[str, ...]
    screenshots: tuple[bytes, ...]
    frame: Frame
    elements: tuple[Element, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.screenshots) <= 1 + len(self.history):
            raise UserError(
                f"a view after {len(self.history)} step(s) has {len(self.screenshots)} screenshots; "
                "fix: the current one, and at most one before each earlier step"
            )


def agent_question(view: View, style: Style) -> tuple[str | None, str]:
    """(system prompt, user text) that ask for the next action. The text has one `<image>`: the current
    screenshot (`agent_screenshots`). The answer is `candidate(action, style)` and a stop token."""
    if _checked(style) == "short":
        return None, _short(view, 0) + short_goal(view.goal, view.history)
    lines = [f"Task: {plain(view.goal)}", "Progress so far:"]
    lines += [f"Step{i}: {plain(desc)}" for i, desc in enumerate(view.history, 1)] or ["none"]
    lines += [f"Screen now: {IMAGE_MARKER}", "Next action:"]
    return _agent_system(view.frame), "\n".join(lines)


def reward_question(view: View, style: Style) -> tuple[str | None, str]:
    """(system prompt, user text) that ask for a judgement, up to where the candidate stands. The text
    has an `<image>` for each of the view's screenshots: in the full style the earlier ones with the
    steps that they come before, and steps without one as their descriptions alone."""
    count = len(view.screenshots) - 1
    if _checked(style) == "short":
        return None, _short(view, count) + short_goal(view.goal, view.history, "?")
    earlier = [False] * (len(view.history) - count) + [True] * count
    lines = [f"Task: {plain(view.goal)}", "Progress so far:"]
    lines += [
        f"Step{i}: {f'{IMAGE_MARKER} ' * shown}{plain(desc)}"
        for i, (desc, shown) in enumerate(zip(view.history, earlier, strict=True), 1)
    ] or ["none"]
    lines += [f"Screen now: {IMAGE_MARKER}", "Proposed action:\n"]
    return _reward_system(view.frame), "\n".join(lines)


def short_goal(goal: str, history: Sequence[str] = (), asks: str = ">") -> str:
    """What ends a question in the short style, all that sets apart the questions of one screen: the
    goal, and the steps so far. They come after it as a candidate does, so that whether a step did what
    the goal says is found in one way, before it is taken and after."""
    steps = "".join(f" | {plain(desc)}" for desc in history)
    return f" {plain(goal)}{steps} {asks}"


def candidate(action: Action, style: Style) -> str:
    """How an action is written as a candidate, and as what an agent learns to answer: its tool call,
    in the short style with the description first, so that a small model says what it does and then
    looks up where. What it types may hold any text, so `<` becomes JSON's escape of it and opens no
    special token."""
    called = render(action, described_first=_checked(style) == "short")
    body = called[len(OPEN_TAG) : -len(CLOSE_TAG)].replace("<", "\\u003c")
    return f"{OPEN_TAG}{body}{CLOSE_TAG}"


def agent_screenshots(view: View) -> tuple[bytes, ...]:
    """The screenshots that `agent_question` marks: the current one alone."""
    return view.screenshots[-1:]


def plain(text: str) -> str:
    """A text that came from a page, a model or a data set, as a prompt may hold it: on one line, and
    with a space after every `<` that has none, so that no `<|+|>`, `<image>` or `</tool_call>` in it
    is one. What is harmless already stays as it is."""
    return re.sub(r"<(?=\S)", "< ", " ".join(text.split()))


def tokens_of(
    tokenizer: Any,
    vision: VisionConfig | None,
    images: ImageConfig | None,
    system: str | None,
    question: str,
    pngs: Sequence[bytes],
) -> tuple[int, ...]:
    """The tokens of a question as a user turn of the tokenizer's chat template, up to where the answer
    begins, with as many image tokens as the pictures take. vision, images: of the policy. UserError for
    a question with a special token in it, and what `prompts.tokenize_rows` refuses."""
    from selfevolve_jax.tasks import prompts

    _refuse_special(tokenizer, question)
    text = prompts.render_prompt(
        tokenizer, question, chat=True, system=system, images=_count(vision, pngs)
    )
    return _tokens(tokenizer, text, vision, images, pngs)


def split_tokens(
    tokenizer: Any,
    vision: VisionConfig | None,
    images: ImageConfig | None,
    system: str | None,
    question: str,
    pngs: Sequence[bytes],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(before, closing): the tokens before a candidate at the question's end, and those of what the
    template writes between there and the answer. The candidate's own come between them, from
    `candidate_tokens`: the three parts are tokenised one by one, always, so that all candidates of a
    view share their beginning and a batch can hold it once. Errors as `tokens_of`."""
    from selfevolve_jax.tasks import prompts

    _refuse_special(tokenizer, question)
    text = prompts.render_prompt(
        tokenizer, question + _HERE, chat=True, system=system, images=_count(vision, pngs)
    )
    before, found, closing = text.rpartition(_HERE)
    if not found:
        raise UserError(
            f"the chat template of tokenizer {tokenizer.name_or_path!r} leaves out or changes what "
            "the user says; fix: the template that the model came with"
        )
    after = tuple(tokenizer.encode(closing, add_special_tokens=False)) if closing else ()
    return _tokens(tokenizer, before, vision, images, pngs), after


def candidate_tokens(tokenizer: Any, action: Action, style: Style) -> tuple[int, ...]:
    """The tokens of `candidate`. UserError for a special token in what it holds."""
    text = candidate(action, style)
    _refuse_special(tokenizer, text[len(OPEN_TAG) : -len(CLOSE_TAG)])
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _checked(style: Style) -> Style:
    if style not in get_args(Style):
        raise UserError(f"prompt style {style!r}; fix: one of {', '.join(get_args(Style))}")
    return style


def _short(view: View, earlier: int) -> str:
    """The screenshots, that many earlier ones first, and the elements in reading order: what all
    questions of one screen share. Every word has a space before it, so that a small tokenizer needs
    each only once."""
    words = [word for element in reading_order(view.elements) for word in _element(element)]
    return f"{IMAGE_MARKER * (earlier + 1)}{''.join(f' {w}' for w in words)} :"


def _element(element: Element) -> list[str]:
    """kind text place, and a mark where it is focused (*), checked (+) or could be (-). Text and place
    stand as in a call that presses it, so that to press what is known by name is to copy."""
    x, y = element.place
    checked = {True: ["+"], False: ["-"], None: []}[element.checked]
    named = " ".join(t for t in (plain(element.kind), plain(element.text)) if t)
    return [f"{named}{PLACE}{x},{y}", *["*"] * element.focused, *checked]


def reading_order(elements: Sequence[Element]) -> list[Element]:
    """Line by line from the top, each from the left; ties as they came."""
    by_height = sorted(elements, key=lambda e: e.centre[1])
    ordered: list[Element] = []
    line: list[Element] = []
    for element in by_height:
        if line and element.centre[1] - line[0].centre[1] > _LINE:
            ordered += sorted(line, key=lambda e: e.centre[0])
            line = []
        line.append(element)
    return ordered + sorted(line, key=lambda e: e.centre[0])


def _agent_system(frame: Frame) -> str:
    # The shape in which Qwen2.5-VL's own chat template lists tools, as it learnt to read it.
    return (
        "You operate a device with a touch screen to do the user's task, one action at a time.\n\n"
        "# Tools\n\n"
        f"The screenshots are {frame.width}x{frame.height} pixels, and coordinates are pixels of "
        "them. You may call this function:\n"
        f"<tools>\n{json.dumps(tool_schema(frame))}\n</tools>\n\n"
        "Answer with one call and nothing else, as a JSON object inside tags:\n"
        f'{OPEN_TAG}{{"name":"mobile_use","arguments":{{...}}}}{CLOSE_TAG}'
    )


def _reward_system(frame: Frame) -> str:
    return (
        "You judge the actions of an agent that operates a device with a touch screen. You are given "
        "its task, its steps so far, screenshots of "
        f"{frame.width}x{frame.height} pixels, of which coordinates are pixels, and the action that it "
        "proposes now. Answer + if the action brings the task forward, or, where it ends the task as "
        "a success, if the task is done; else answer -."
    )


def _refuse_special(tokenizer: Any, text: str) -> None:
    """`plain` and `candidate` disarm what looks like `<…>`; a tokenizer may have others."""
    found = [token for token in tokenizer.all_special_tokens if token in text]
    if found:
        raise UserError(
            f"a prompt's text contains {found[0]!r}, which is a special token of tokenizer "
            f"{tokenizer.name_or_path!r}; fix: take it out of {_around(text, found[0])!r}"
        )


def _around(text: str, token: str) -> str:
    at = text.index(token)
    return text[max(at - 30, 0) : at + len(token) + 30]


def _count(vision: VisionConfig | None, pngs: Sequence[bytes]) -> int:
    if vision is None:
        raise UserError(
            f"the prompt shows {len(pngs)} screenshot(s), and this policy reads text only; "
            "fix: a vision-language checkpoint, such as Qwen2.5-VL"
        )
    return len(pngs)


def _tokens(
    tokenizer: Any,
    text: str,
    vision: VisionConfig | None,
    images: ImageConfig | None,
    pngs: Sequence[bytes],
) -> tuple[int, ...]:
    from selfevolve_jax.tasks import prompts

    assert vision is not None
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    return prompts.expand_images(tokenizer, tokens, pngs, vision, images)
