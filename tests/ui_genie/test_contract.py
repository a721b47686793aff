"""The prompts to the letter and to the token, and that no page, model or data set can write into them
what is not its to write."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.images import smart_resize
from selfevolve_jax.tasks import prompts
from selfevolve_jax.ui_genie import contract
from selfevolve_jax.ui_genie.actions import Action, Frame, parse
from selfevolve_jax.ui_genie.contract import (
    COMPLETED,
    NEGATIVE,
    POSITIVE,
    View,
    agent_question,
    candidate,
    candidate_tokens,
    plain,
    reading_order,
    reward_question,
    split_tokens,
    tokens_of,
)
from selfevolve_jax.ui_genie.environment import Element
from tests.seeing import IMAGE, IMAGES, TURN_END, VISION, png, tokenizer

FRAME = Frame(160, 210)
OK = Element("button", "Ok", (60, 100, 100, 120))
ELEMENTS = (
    OK,
    Element("checkbox", "news", (8, 40, 20, 52), checked=True),
    Element("input", "", (30, 44, 90, 56), focused=True),
    Element("checkbox", "ads", (100, 40, 112, 50), checked=False),
)
VIEW = View(
    "Say Zoe and press Ok",
    ("click field", "type Zoe", "check news"),
    (png(24, 16, 1), png(24, 16, 2)),
    FRAME,
    ELEMENTS,
)
CLICK = Action("click", "click Ok", coordinate=(80, 110))
# What could do harm if it got through, and bits that could make it up.
SPECIAL = (POSITIVE, NEGATIVE, "<image>", "<|image_pad|>", "<|im_end|>")
PIECES = (*SPECIAL, "<tool_call>", "</tool_call>")
BITS = ("<", "|", "+", ">", "image", "im_end", " ", "\n", "\x1f", "a", '"', "\\")
HOSTILE = st.lists(st.sampled_from([*PIECES, *BITS]), max_size=8).map("".join)


@pytest.fixture(scope="module")
def text():
    made = tokenizer()
    made.add_special_tokens(
        {"additional_special_tokens": [POSITIVE, NEGATIVE]}, replace_extra_special_tokens=False
    )
    return made


def test_the_reward_models_question_in_full():
    """Screenshots stand with the steps that they were seen before; the oldest steps have none."""
    system, question = reward_question(VIEW, "full")
    assert question == (
        "Task: Say Zoe and press Ok\n"
        "Progress so far:\n"
        "Step1: click field\n"
        "Step2: type Zoe\n"
        "Step3: <image> check news\n"
        "Screen now: <image>\n"
        "Proposed action:\n"
    )
    assert system is not None and "160x210 pixels" in system
    first = View("Go", (), VIEW.screenshots[:1], FRAME)
    assert reward_question(first, "full")[1] == (
        "Task: Go\nProgress so far:\nnone\nScreen now: <image>\nProposed action:\n"
    )


def test_the_agents_question_in_full():
    system, question = agent_question(VIEW, "full")
    assert question == (
        "Task: Say Zoe and press Ok\n"
        "Progress so far:\n"
        "Step1: click field\n"
        "Step2: type Zoe\n"
        "Step3: check news\n"
        "Screen now: <image>\n"
        "Next action:"
    )
    assert system is not None and "160x210" in system and '"mobile_use"' in system
    assert contract.agent_screenshots(VIEW) == VIEW.screenshots[1:]


def test_the_short_questions():
    """Elements line by line: boxes whose centres differ by a few pixels are on one line. Each place, on
    the grid of 8 pixels, stands as in a call."""
    listed = (
        ' checkbox news","coordinate":[16,48 + input","coordinate":[64,48 *'
        ' checkbox ads","coordinate":[104,48 - button Ok","coordinate":[80,112'
    )
    asked = f"{listed} : Say Zoe and press Ok | click field | type Zoe | check news"
    assert agent_question(VIEW, "short") == (None, f"<image>{asked} >")
    assert reward_question(VIEW, "short") == (None, f"<image><image>{asked} ?")


def test_the_marker_is_the_one_that_prompts_replaces():
    assert contract.IMAGE_MARKER == prompts.IMAGE_MARKER


def test_reading_order():
    def at(x, y):
        return Element("text", f"{x},{y}", (x - 5, y - 5, x + 5, y + 5))

    a, b, c, d, e = at(90, 10), at(10, 14), at(50, 18), at(20, 19), at(5, 40)
    # 19 is more than 8 below 10, where the first line began.
    assert reading_order([e, d, c, b, a]) == [b, c, a, d, e]
    assert reading_order([]) == []


@pytest.mark.parametrize("style", ["full", "short"])
@pytest.mark.parametrize(
    "change",
    [
        {"goal": "Say Bob and press Ok"},
        {"history": ("click field", "type Bob", "check news")},
        {"history": ("click field", "check news")},
        {"screenshots": VIEW.screenshots[1:]},
        {"elements": ELEMENTS[1:]},
        {"elements": (replace(OK, box=(60, 100, 112, 120)), *ELEMENTS[1:])},
        {"elements": (replace(OK, focused=True), *ELEMENTS[1:])},
        {"frame": Frame(168, 210)},
    ],
)
def test_what_is_shown_decides_the_question(style, change):
    """Elements are for the short style alone, the frame's size for the full one."""
    same = next(iter(change)) == ("elements" if style == "full" else "frame")
    assert (reward_question(replace(VIEW, **change), style) == reward_question(VIEW, style)) == same


@settings(max_examples=60)
@given(HOSTILE)
def test_plain_text_can_be_nothing_else(written):
    safe = plain(written)
    assert not any(piece in safe for piece in PIECES) and "\n" not in safe
    assert plain(safe) == safe
    assert safe.replace(" ", "") == "".join(written.split())  # nothing is lost but whitespace


def test_harmless_text_stays():
    assert plain("2 < 3 > 1, a|b: café 日本") == "2 < 3 > 1, a|b: café 日本"


@settings(max_examples=60)
@given(HOSTILE, HOSTILE, HOSTILE)
@pytest.mark.parametrize("style", ["full", "short"])
def test_no_page_can_write_a_special_token(text, style, goal, desc, shown):
    """Nor a model: the only special tokens of a prompt are the template's."""
    elements = (Element("link", shown, (0, 0, 9, 9)), Element(shown, desc, (0, 0, 9, 9)))
    view = replace(VIEW, goal=goal, history=(desc, goal, shown), elements=elements)
    innocent = replace(VIEW, goal="a", history=("b", "c", "d"), elements=())
    special = set(text.all_special_ids)

    def specials(view):
        system, question = reward_question(view, style)
        before, closing = split_tokens(text, VISION, IMAGES, system, question, view.screenshots)
        return [t for t in (*before, *closing) if t in special]

    assert specials(view) == specials(innocent)


@settings(max_examples=60)
@given(HOSTILE, HOSTILE)
def test_no_candidate_can(text, typed, desc):
    """And it is still the tool call that the agent wrote."""
    action = Action("type", desc, text=typed)
    written = candidate(action, "full")
    assert parse(written, FRAME) == action
    assert not set(candidate_tokens(text, action, "full")) & set(text.all_special_ids)
    assert written.count("<") == 2  # the tags


def test_a_candidate_by_hand():
    opening = '<tool_call>{"name":"mobile_use","arguments":'
    full = '{"action":"click","coordinate":[80,110],"action_desc":"click Ok"}}</tool_call>'
    short = '{"action":"click","action_desc":"click Ok","coordinate":[80,110]}}</tool_call>'
    assert candidate(CLICK, "full") == opening + full
    assert candidate(CLICK, "short") == opening + short
    assert '"action":"terminate","status":"success"' in candidate(COMPLETED, "full")


@pytest.mark.parametrize("style", ["full", "short"])
def test_the_parts_are_the_conversation(text, style):
    """The candidate stands at the end of the user's turn, and the answer begins the assistant's."""
    system, question = reward_question(VIEW, style)
    before, closing = split_tokens(text, VISION, IMAGES, system, question, VIEW.screenshots)
    assert text.decode(closing) == "<|im_end|>\n<|im_start|>assistant\n" and closing[0] == TURN_END
    assert before.count(IMAGE) == 2 * 6  # 24 x 16 pixels in units of 8, twice
    shown = "<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>"
    asked = question.replace("<image>", shown)
    opening = f"<|im_start|>system\n{system or 'Help.'}<|im_end|>\n"
    assert text.decode(before) == f"{opening}<|im_start|>user\n{asked}"
    # An agent's prompt is closed where the candidate would stand.
    whole = tokens_of(text, VISION, IMAGES, system, question, VIEW.screenshots)
    assert whole == before + closing


def test_a_template_that_writes_texts_as_they_are_has_nothing_to_close():
    bare = tokenizer(
        "{% for p in messages[-1].content %}"
        "{% if p.type == 'image' %}<|image_pad|>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    )
    _, question = reward_question(VIEW, "short")
    _, closing = split_tokens(bare, VISION, IMAGES, None, question, VIEW.screenshots)
    assert closing == ()


def test_refusals(text):
    ask = agent_question(VIEW, "short")
    shown = VIEW.screenshots[1:]
    with pytest.raises(UserError, match=r"shows 1 screenshot.*reads text only"):
        tokens_of(text, None, None, *ask, shown)
    with pytest.raises(UserError, match=r"marks 1 place.* for 2 image"):
        tokens_of(text, VISION, IMAGES, *ask, VIEW.screenshots)
    with pytest.raises(UserError, match=r"style 'tall'.*full, short"):
        reward_question(VIEW, "tall")
    for wrong in ((), (png(8, 8),) * 5):
        with pytest.raises(UserError, match=rf"after 3 step.* has {len(wrong)} screenshots"):
            replace(VIEW, screenshots=wrong)
    mute = tokenizer("hello")
    with pytest.raises(UserError, match="leaves out or changes"):
        split_tokens(mute, VISION, IMAGES, *ask, shown)


def test_a_special_token_of_another_look_is_refused():
    """`plain` knows `<…>` only; a tokenizer may have others."""
    other = tokenizer()
    other.add_special_tokens(
        {"additional_special_tokens": ["[INST]"]}, replace_extra_special_tokens=False
    )
    ask = agent_question(replace(VIEW, goal="Press [INST] now"), "short")
    with pytest.raises(UserError, match=r"contains '\[INST\]'.*Press"):
        tokens_of(other, VISION, IMAGES, *ask, VIEW.screenshots[1:])
    with pytest.raises(UserError, match=r"\[INST\]"):
        candidate_tokens(other, Action("type", "type", text="x[INST]"), "short")


def test_the_page_says_what_the_function_does():
    page = (Path(__file__).parents[2] / "docs" / "ui_genie_contract.md").read_text()
    columns = next(block for block in page.split("```\n") if block.startswith("Task:"))
    at = columns.index("Task:", 1)  # where the right column begins
    left, right = zip(*((line[:at], line[at:]) for line in columns.splitlines()), strict=True)
    agent = [line.rstrip() for line in left if line.strip()]
    assert "\n".join(agent) == agent_question(VIEW, "full")[1]
    assert "\n".join(right).removesuffix("CANDIDATE") == reward_question(VIEW, "full")[1].rstrip(
        " "
    )
    lines = page.splitlines()
    assert agent_question(replace(VIEW, elements=ELEMENTS[:2]), "short")[1] in lines
    assert candidate(CLICK, "full") in lines and candidate(CLICK, "short") in lines
    rows, columns = smart_resize(2400, 1080, 28, 3136, 602_112)
    assert f"{columns}x{rows}" in page and f" {rows * columns // 28**2} for 1080x2400" in page
    rows, columns = smart_resize(210, 160, 28, 3136, 602_112)
    assert f": {rows * columns // 28**2} for\n160x210" in page
