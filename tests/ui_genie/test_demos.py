"""Scripts do what the goal says with what is on the screen, and say None where they know no way on."""

from dataclasses import replace
from typing import Any

import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import demos, miniwob
from selfevolve_jax.ui_genie.actions import Action, Frame, parse
from selfevolve_jax.ui_genie.demos import SCRIPTS, demonstrate
from selfevolve_jax.ui_genie.environment import GRID, Broken, Element, Observation, State
from selfevolve_jax.ui_genie.trajectory import keep

FRAME = Frame(160, 210)


def element(kind, text="", x=5, y=5, **more):
    """One whose middle is at column x and line y of the grid."""
    x, y = GRID * x, GRID * y
    return Element(kind, text, (x - 10, y - 5, x + 10, y + 5), **more)


def click(desc, x=5, y=5):
    return Action("click", desc, (GRID * x, GRID * y))


def typed(text):
    return Action("type", f"type {text}", text=text)


def step(task, goal, elements, history: tuple[Action, ...] = ()) -> Action:
    """What the script does, which knows a way on."""
    action = demonstrate(task, goal, elements, history)
    assert action is not None
    return action


SUBMIT = element("button", "Submit", 5, 15)
DONE = click("click Submit", 5, 15)


@pytest.mark.parametrize(
    "task, goal, elements, wanted",
    [
        (
            "click-button",
            'Click on the "ok" button.',
            [element("text", "ok", 1), element("button", "Ok", 2), element("button", "ok", 3)],
            click("click ok", 3),
        ),
        (
            "click-link",
            'Click on the link "sit.".',
            [element("link", "sit", 1), element("text", "sit.", 2), element("link", "sit.", 3)],
            click("click sit.", 3),
        ),
        ("click-test-2", "Click button TWO.", [element("button", "TWO", 7)], click("click TWO", 7)),
        (
            "click-tab",
            "Click on Tab #2.",
            [element("link", "Tab #1", 1), element("link", "Tab #2", 2)],
            click("click Tab #2", 2),
        ),
        (
            "click-widget",
            'Click on a "text" widget.',
            [element("textarea", "a", 1), element("input", "b", 2), element("text", "c", 3)],
            click("click text", 2),
        ),
        (
            "click-color",
            "Click on the grey colored box.",
            [element("block", "red", 1), element("block", "grey", 2)],
            click("click grey", 2),
        ),
        (
            "focus-text-2",
            "Focus into the 3rd input textbox.",
            [element("input", x=x) for x in (1, 2, 3)],
            click("click 3rd textbox", 3),
        ),
        (
            "focus-text",
            "Focus into the textbox.",
            [element("input", x=4)],
            click("click textbox", 4),
        ),
    ],
)
def test_one_step(task, goal, elements, wanted):
    assert demonstrate(task, goal, elements, ()) == wanted


def test_what_is_not_there_is_not_clicked():
    assert demonstrate("click-button", 'Click on the "ok" button.', [SUBMIT], ()) is None
    assert demonstrate("click-widget", 'Click on a "radio" widget.', [SUBMIT], ()) is None
    assert demonstrate("focus-text-2", "Focus into the 2nd input textbox.", [SUBMIT], ()) is None
    assert demonstrate("click-button", "Something else", [SUBMIT], ()) is None
    assert demonstrate("no-such-task", "Click", [SUBMIT], ()) is None
    for task in SCRIPTS:
        assert demonstrate(task, "", [], ()) is None


def test_checkboxes_are_brought_to_what_the_goal_names():
    goal = "Select Bk2, at and click Submit."

    def boxes(*checked):
        names = ("Bk2", "x", "at")
        found = [element("checkbox", n, y, checked=n in checked) for y, n in enumerate(names, 1)]
        return [*found, SUBMIT]

    ask = lambda *checked: demonstrate("click-checkboxes", goal, boxes(*checked), ())  # noqa: E731
    assert ask() == click("check Bk2", 1)
    assert ask("Bk2") == click("check at", 3)
    assert ask("Bk2", "x", "at") == click("uncheck x", 2)
    assert ask("Bk2", "at") == DONE
    none = "Select nothing and click Submit."
    assert demonstrate("click-checkboxes", none, boxes(), ()) == DONE


def test_an_option_is_selected_then_submitted():
    goal = "Select Bk2 and click Submit."
    radio = element("radio", "Bk2", 5, checked=False)
    assert demonstrate("click-option", goal, [radio, SUBMIT], ()) == click("select Bk2", 5)
    chosen = replace(radio, checked=True)
    assert demonstrate("click-option", goal, [chosen, SUBMIT], ()) == DONE


def test_fields_are_filled_from_the_top():
    goal = 'Enter the username "zoe" and the password "Bk2" into the text fields and press login.'

    def ask(user="", password="", focused=None):
        fields = [
            element("text", "Username", y=10),
            element("input", user, y=20, focused=focused == 0),
            element("text", "Password", y=30),
            element("input", password, y=40, focused=focused == 1),
            element("button", "Login", y=60),
        ]
        return demonstrate("login-user", goal, fields, ())

    assert ask() == click("click Username", y=20)
    assert ask(focused=0) == typed("zoe")
    assert ask("zoe", focused=0) == click("click Password", y=40)
    assert ask("zoe", focused=1) == typed("Bk2")
    assert ask("zoe", "***", focused=1) == click("click Login", y=60)
    # Nothing here can delete what is there.
    assert ask("zo") is None
    assert ask("zoe", "****") is None


@pytest.mark.parametrize(
    "goal, text",
    [
        ('Type "zoe" in all upper case letters in the text input and press Submit.', "ZOE"),
        ('Type "ZOE" in all lower case letters in the text input and press Submit.', "zoe"),
    ],
)
def test_letters_are_typed_in_the_case_that_is_asked_for(goal, text):
    field = element("input", focused=True)
    assert demonstrate("enter-text-2", goal, [field, SUBMIT], ()) == typed(text)
    full = replace(field, text=text)
    assert demonstrate("enter-text-2", goal, [full, SUBMIT], ()) == DONE


def test_the_second_button_follows_the_first():
    goal = "Click button ONE, then click button TWO."
    both = [element("button", "TWO", 2), element("button", "ONE", 1)]
    first = step("click-button-sequence", goal, both, ())
    assert first == click("click ONE", 1)
    assert demonstrate("click-button-sequence", goal, both, (first,)) == click("click TWO", 2)
    assert demonstrate("click-button-sequence", goal, both, (first, first)) is None


def test_a_link_is_looked_for_behind_every_tab_once():
    goal = 'Switch between the tabs to find and click on the link "at".'
    tabs = [element("link", f"Tab #{n}", n) for n in (1, 2, 3)]
    other = element("link", "At", 9)  # spelt alike, but another word
    second = step("click-tab-2", goal, [*tabs, other], ())
    assert second == click("click Tab #2", 2)
    third = step("click-tab-2", goal, [*tabs, other], (second,))
    assert third == click("click Tab #3", 3)
    assert demonstrate("click-tab-2", goal, tabs, (second, third)) is None
    there = [*tabs, element("link", "at", 8)]
    assert demonstrate("click-tab-2", goal, there, (second,)) == click("click at", 8)


def test_sections_begin_with_the_first():
    goal = 'Expand the sections below, to find and click on the link "at".'
    sections = [element("tab", f"Section #{n}", n) for n in (1, 2)]
    first = step("click-collapsible-2", goal, sections, ())
    assert first == click("click Section #1", 1)
    assert step("click-collapsible-2", goal, sections, (first,)) == click("click Section #2", 2)


def test_a_section_is_opened_before_submit():
    goal, tab = "Expand the section below and click submit.", element("tab", "Section #7", 7)
    assert demonstrate("click-collapsible", goal, [tab, SUBMIT], ()) == click("click Section #7", 7)
    opened = [tab, element("text", "At sit."), SUBMIT]
    assert demonstrate("click-collapsible", goal, opened, ()) == DONE


def test_folders_are_opened_until_the_name_shows():
    goal = 'Navigate through the file tree. Find and click on the folder or file named "Zoe".'

    def row(name, y, folder=False, depth=0):
        left = 18 + 16 * depth
        mark = Element("block", "", (left - 16, y - 6, left, y + 10))
        item = Element("item", name, (left, y - 6, 158, y + 7))
        return [mark, item] if folder else [item]

    closed = [*row("Alan", 48), *row("Olin", 64, True), *row("Olin", 80, True)]
    first = step("navigate-tree", goal, closed, ())
    assert first.action_desc == "click Olin"
    assert first.coordinate == (88, 64)
    # It was empty, so the other one of that name is next.
    second = step("navigate-tree", goal, closed, (first,))
    assert second.coordinate == (88, 80)
    opened = [*row("Alan", 48), *row("Olin", 64, True), *row("Rex", 80, True, 1)]
    inside = step("navigate-tree", goal, opened, (first,))
    assert inside.action_desc == "click Rex"
    found = step("navigate-tree", goal, [*opened, *row("Zoe", 95, True, 2)], ())
    assert found.action_desc == "click Zoe"


def test_results_are_counted_over_pages():
    goal = 'Use the textbox to enter "Zoe" and press "Search", then find the 5th search result.'
    field, button = element("input"), element("button", "Search")
    assert demonstrate("search-engine", goal, [field, button], ()) == click("click input")
    focused = replace(field, focused=True)
    assert demonstrate("search-engine", goal, [focused, button], ()) == typed("Zoe")
    full = replace(field, text="Zoe")
    assert demonstrate("search-engine", goal, [full, button], ()) == click("click Search")
    results = [element("link", name, 10 + n) for n, name in enumerate(("Ada", "Rex", "Joye"))]
    pages = [element("link", name, 20 + n) for n, name in enumerate(("1", "2", "3", ">"))]
    shown = [full, button, *results, *pages]
    turn = step("search-engine", goal, shown, (typed("Zoe"),))
    assert turn == click("click 2", 21)
    assert demonstrate("search-engine", goal, shown, (typed("Zoe"), turn)) == click("click Rex", 11)


# ---- playing them


class Screens:
    """A fleet of pages with one button that has to be pressed `task` times."""

    most = 0

    def observe(self, states):
        self.most = max(self.most, len(states))
        return [self.one(state) for state in states]

    def one(self, state: State):
        if state.seed == 13:
            return Broken("no luck")
        done = len(state.actions) >= int(state.task.split("-")[-1])
        png = f"{state.task} {state.seed} {len(state.actions)}".encode()
        buttons = () if state.seed == 7 else (SUBMIT,)
        reward = float(done and state.seed != 5)
        return Observation("Press it.", png, FRAME, buttons, done, reward)


@pytest.fixture
def pressing(monkeypatch):
    press = demos._click_test
    monkeypatch.setattr(demos, "SCRIPTS", {f"press-{n}": press for n in (1, 2, 99)})


def test_play_ends_with_the_page_the_script_or_the_limit(pressing):
    starts = [("press-2", 0), ("press-1", 5), ("press-1", 13), ("press-2", 7), ("press-99", 0)]
    screens: Any = Screens()
    played, shots = demos.play(starts, screens, at_once=2, most_steps=4)
    assert screens.most == 2
    told = [(one.task, one.seed, len(one.steps), one.done, one.success) for one in played]
    assert told == [
        ("press-2", 0, 2, True, True),
        ("press-1", 5, 1, True, False),  # ended, and not well
        ("press-2", 7, 0, False, False),  # no way on
        ("press-99", 0, 4, False, False),
    ]
    one = played[0]
    assert [shots[step.screenshot] for step in one.steps] == [b"press-2 0 0", b"press-2 0 1"]
    assert one.final == keep(b"press-2 0 2") and one.final_elements == (SUBMIT,)
    for step in one.steps:
        assert step.action == DONE
        assert parse(step.text, FRAME) == DONE
    assert len({each.id for each in played}) == 4


@pytest.mark.browser
def test_every_script_does_its_task():
    pytest.importorskip("playwright", reason="the extra gui is not installed")
    try:
        miniwob.find_chromium()
        miniwob.pages_folder()
    except UserError as error:
        pytest.skip(str(error))
    with miniwob.miniwob_fleet(4) as fleet:
        played, _ = demos.play([(task, 3) for task in SCRIPTS], fleet, at_once=4)
    assert [one.task for one in played] == list(SCRIPTS)
    assert [one.task for one in played if not one.success] == []
    assert 0.35 <= sum(len(one.steps) > 1 for one in played) / len(played) <= 0.65
