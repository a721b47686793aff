"""Scripted demonstrations of MiniWoB++ tasks: what an agent of the quickstart learns from first.

A script reads the goal and the listed elements, which are what is on the screen, and its own earlier
actions; never the page's source, nor its answer. It does what the page needs and nothing else: every
one of these tasks is ended by the page itself, so there is no `terminate` in a demonstration, and
whether the task was done is the reward model's own question about the last screen.

Every action says itself in a fixed form of the screen's words: `click Submit`, `check Bk2`,
`type Zoe`. Half of the tasks take one step, the others up to seven.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from selfevolve_jax.ui_genie import contract
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Broken, Element, Observation, State, won
from selfevolve_jax.ui_genie.explore import Screens
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, keep

# (goal, elements, earlier actions) -> the next one, or None where the script knows no way on
Script = Callable[[str, Sequence[Element], Sequence[Action]], Action | None]
MOST_STEPS = 10
_RESULTS_A_PAGE = 3  # of search-engine


def demonstrate(
    task: str, goal: str, elements: Sequence[Element], history: Sequence[Action]
) -> Action | None:
    """What to do next: a pure function of what is on the screen and of the actions so far. None where
    there is no script for the task (SCRIPTS), or where it knows no way on from here."""
    script = SCRIPTS.get(task)
    return None if script is None else script(goal, elements, history)


def play(
    starts: Iterable[tuple[str, int]],
    fleet: Screens,
    at_once: int = 8,
    most_steps: int = MOST_STEPS,
) -> tuple[list[Trajectory], dict[str, bytes]]:
    """Plays the scripts from each (task, seed): one trajectory each, in order, and their screenshots by
    name. at_once: episodes under way; the fleet's screens, as with more of them each is replayed.

    An episode ends when the page ends it, when the script knows no way on, or after `most_steps`;
    `success` is the page's verdict, so that the caller can leave failures out. A state that stayed out
    of reach (Broken) gives no trajectory.
    """
    states = [State(task, seed) for task, seed in starts]
    seen: dict[int, list[Observation]] = {i: [] for i in range(len(states))}
    waiting, live = list(seen), []
    shots: dict[str, bytes] = {}
    while waiting or live:
        room = at_once - len(live)
        live, waiting = live + waiting[:room], waiting[room:]
        going = []
        for i, observed in zip(live, fleet.observe([states[i] for i in live]), strict=True):
            if isinstance(observed, Broken):
                del seen[i]
                continue
            seen[i].append(observed)
            shots[keep(observed.screenshot)] = observed.screenshot
            actions = states[i].actions
            if observed.done or len(actions) == most_steps:
                continue
            action = demonstrate(states[i].task, observed.goal, observed.elements, actions)
            if action is not None:
                states[i] = states[i].after(action)
                going.append(i)
        live = going
    return [_trajectory(states[i], views) for i, views in seen.items()], shots


def _trajectory(state: State, seen: Sequence[Observation]) -> Trajectory:
    steps = tuple(
        Step(keep(before.screenshot), before.elements, contract.candidate(action, "short"), action)
        for before, action in zip(seen, state.actions, strict=False)
    )
    last = seen[-1]
    return Trajectory(
        id=f"demonstration/{state.task}/{state.seed}",
        task=state.task,
        seed=state.seed,
        goal=seen[0].goal,
        frame=last.frame,
        steps=steps,
        final=keep(last.screenshot),
        final_elements=last.elements,
        done=last.done,
        success=won(last),
        source={"how": "demonstration"},
    )


# ---- what scripts are made of


def _click(element: Element, desc: str) -> Action:
    return Action("click", desc, element.place)


def click_named(element: Element) -> Action:
    """A click on what an element shows, or on its kind where it shows nothing."""
    return _click(element, f"click {element.name}")


def type_text(text: str) -> Action:
    return Action("type", f"type {text}", text=text)


def _press(element: Element | None) -> Action | None:
    return None if element is None else click_named(element)


def _of(elements: Sequence[Element], *kinds: str) -> list[Element]:
    return [element for element in elements if element.kind in kinds]


def _named(elements: Sequence[Element], text: str, *kinds: str) -> Element | None:
    """The first that shows exactly this text, in this case; else in any case."""
    there = _of(elements, *kinds)
    exact = (element for element in there if element.text == text)
    alike = (element for element in there if element.text.lower() == text.lower())
    return next(exact, None) or next(alike, None)


def _quoted(goal: str) -> list[str]:
    return re.findall(r'"(.*?)"', goal)


def _first_quoted(goal: str) -> str:
    return next(iter(_quoted(goal)), "")


def _click_named(pattern: str, *kinds: str) -> Script:
    """One click on what shows the text that the goal names, as the pattern's group."""

    def script(goal, elements, history):
        found = re.search(pattern, goal)
        return _press(_named(elements, found[1], *kinds)) if found else None

    return script


def _fill(
    elements: Sequence[Element], wanted: Sequence[tuple[str, str]], secret: Sequence[bool]
) -> Action | None:
    """Types the texts into the fields of the screen from the top, then presses the button.

    wanted: (what the field is called in descriptions, its text) of each. secret: where a field shows
    stars. None where a field holds something else already, as nothing here can delete.
    """
    fields = _of(elements, "input")
    if len(fields) != len(wanted):
        return None
    for field, (name, text), hidden in zip(fields, wanted, secret, strict=True):
        if field.text == ("*" * len(text) if hidden else text):
            continue
        if field.text:
            return None
        return type_text(text) if field.focused else _click(field, f"click {name}")
    return _press(next(iter(_of(elements, "button")), None))


# ---- the tasks: each a Script


def _click_test(goal, elements, history):
    return _press(next(iter(_of(elements, "button")), None))


def _click_widget(goal, elements, history):
    name = _first_quoted(goal)
    kind = "input" if name == "text" else name
    found = next(iter(_of(elements, kind)), None)
    return None if found is None else _click(found, f"click {name}")


def _click_color(goal, elements, history):
    found = re.search(r"Click on the (\w+) colored", goal)
    if not found:
        return None
    # two names of one colour: the goal uses the first, the list of elements may use the second
    names = (found[1], "aqua") if found[1] == "cyan" else (found[1],)
    boxes = [_named(elements, name, "block") for name in names]
    return _press(next(filter(None, boxes), None))


def _focus_text(goal, elements, history):
    fields, place = _of(elements, "input"), re.search(r"the (\d)(?:st|nd|rd) ", goal)
    which = int(place[1]) - 1 if place else 0
    if not 0 <= which < len(fields):
        return None
    number = f"{place[0].split()[1]} " if place else ""
    return _click(fields[which], f"click {number}textbox")


def _click_option(goal, elements, history):
    found = re.search(r"Select (\S+) and click Submit", goal)
    option = _named(elements, found[1], "radio") if found else None
    if option is None:
        return None
    if option.checked:
        return _press(_named(elements, "Submit", "button"))
    return _click(option, f"select {option.text}")


def _click_checkboxes(goal, elements, history):
    found = re.search(r"Select (.*) and click Submit", goal)
    if not found:
        return None
    wanted = [] if found[1] == "nothing" else found[1].split(", ")
    for box in _of(elements, "checkbox"):
        if (box.text in wanted) != box.checked:
            return _click(box, f"{'uncheck' if box.checked else 'check'} {box.text}")
    return _press(_named(elements, "Submit", "button"))


def _click_button_sequence(goal, elements, history):
    # What was pressed already does not show.
    names = re.findall(r"button ([A-Z]+)", goal)
    place = len(history)
    return _press(_named(elements, names[place], "button")) if place < len(names) else None


def _click_collapsible(goal, elements, history):
    tab = next(iter(_of(elements, "tab")), None)
    opened = tab is not None and bool(_of(elements, "text"))
    return _press(_named(elements, "Submit", "button") if opened else tab)


def _look_behind(*kinds: str) -> Script:
    """Presses the link that the goal names where it shows, else what it may be behind (tabs or
    sections, in order, none twice)."""

    def script(goal, elements, history):
        behind = [e for e in _of(elements, *kinds) if "#" in e.text]
        link = _named([e for e in elements if e not in behind], _first_quoted(goal), "link")
        # Another link may be spelt alike; only the very same word is the one.
        if link is not None and link.text == _first_quoted(goal):
            return _press(link)
        done = {action.action_desc for action in history}
        # the first tab shows from the start; the first section does not
        start = 1 if kinds == ("link",) else 0
        fresh = (e for e in behind[start:] if f"click {e.text}" not in done)
        return _press(next(fresh, None))

    return script


def _enter_text(goal, elements, history):
    return _fill(elements, [("input", _first_quoted(goal))], [False])


def _enter_text_2(goal, elements, history):
    text = _first_quoted(goal)
    text = text.upper() if "upper case" in goal else text.lower()
    return _fill(elements, [("input", text)], [False])


def _enter_password(goal, elements, history):
    word, names = _first_quoted(goal), [e.text for e in _of(elements, "text")]
    if len(names) != 2:
        return None
    return _fill(elements, [(name, word) for name in names], [True, True])


def _login_user(goal, elements, history):
    said, names = _quoted(goal), [e.text for e in _of(elements, "text")]
    if len(said) != 2 or len(names) != 2:
        return None
    return _fill(elements, list(zip(names, said, strict=True)), [False, True])


def _navigate_tree(goal, elements, history):
    """Opens folders from the top until the name shows. A folder has a block for its mark on its row;
    an open one has what is in it below, further to the right, or was opened in the history."""
    target = _named(elements, _first_quoted(goal), "item")
    if target is not None:
        return _press(target)
    items, marks = _of(elements, "item"), _of(elements, "block")
    tried = [action.action_desc for action in history]
    for i, item in enumerate(items):
        folder = any(abs(mark.box[1] - item.box[1]) <= 4 for mark in marks)
        inside = items[i + 1 : i + 2]
        opened = any(below.box[0] > item.box[0] for below in inside)
        desc = f"click {item.text}"
        if not folder or opened:
            continue
        if desc in tried:
            tried.remove(desc)  # an empty folder; another of the same name is still to be tried
            continue
        return _click(item, desc)
    return None


def _search_engine(goal, elements, history):
    asked = re.search(r'enter "(.*?)".*the (\d+)(?:st|nd|rd|th) search result', goal)
    field, button = (next(iter(_of(elements, kind)), None) for kind in ("input", "button"))
    if not asked or field is None or button is None:
        return None
    name, place = asked[1], int(asked[2]) - 1
    links = _of(elements, "link")
    pages = [e for e in links if e.text in ("1", "2", "3", "<", ">")]
    results = [e for e in links if e not in pages]
    if field.text != name:
        if field.text:
            return None
        return type_text(name) if field.focused else _click(field, "click input")
    if not pages:
        return _press(button)
    page, at = divmod(place, _RESULTS_A_PAGE)
    turned = [a.action_desc for a in history if a.action_desc in ("click 1", "click 2", "click 3")]
    if page + 1 != int(turned[-1].split()[1] if turned else 1):
        return _press(_named(pages, str(page + 1), "link"))
    return _press(results[at]) if at < len(results) else None


SCRIPTS: Mapping[str, Script] = {
    # one step
    "click-test": _click_test,
    "click-test-2": _click_named(r"button (\w+)\.", "button"),
    "click-button": _click_named(r'the "(.*)" button', "button"),
    "click-link": _click_named(r'link "(.*)"', "link"),
    "click-dialog": _click_named(r'the "(x)"', "button"),
    "click-dialog-2": _click_named(r'labeled "(.*)"', "button"),
    "click-tab": _click_named(r"Click on (Tab #\d)", "link"),
    "click-widget": _click_widget,
    "click-color": _click_color,
    "focus-text": _focus_text,
    "focus-text-2": _focus_text,
    # several
    "click-option": _click_option,
    "click-checkboxes": _click_checkboxes,
    "click-button-sequence": _click_button_sequence,
    "click-collapsible": _click_collapsible,
    "click-collapsible-2": _look_behind("tab"),
    "click-tab-2": _look_behind("link"),
    "enter-text": _enter_text,
    "enter-text-2": _enter_text_2,
    "enter-password": _enter_password,
    "login-user": _login_user,
    "navigate-tree": _navigate_tree,
    "search-engine": _search_engine,
}
