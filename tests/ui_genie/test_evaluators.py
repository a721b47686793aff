import json

import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import (
    DIRECTIONS,
    Action,
    Failure,
    Frame,
    Name,
    finger_direction,
    parse,
)
from selfevolve_jax.ui_genie.evaluators import (
    PROFILES,
    Score,
    Truth,
    qwen,
    report,
    strict,
    table,
    uigenie,
)

FRAME = Frame(300, 400)  # its diagonal is 500, so that 14% are 70 pixels
UNPARSABLE = Failure("malformed_json", "x")
ALL = tuple(PROFILES)


def click(x, y, name: Name = "click"):
    return Action(name, "d", coordinate=(x, y), time=2.0 if name == "long_press" else None)


def typed(text, name: Name = "type"):
    return Action(name, "d", text=text)


def swipe(direction):
    return Action("swipe", "d", coordinate=(1, 1), direction=direction, distance="short")


def end(status="success"):
    return Action("terminate", "d", status=status)


def button(name):
    return Action("system_button", "d", button=name)


def wait(time):
    return Action("wait", "d", time=time)


def right(prediction, truth):
    """The profiles under which the step is right."""
    return {name for name, rule in PROFILES.items() if rule(prediction, truth).step}


CLICK = Truth(click(100, 100), FRAME, box=(90.0, 80.0, 130.0, 120.0))


@pytest.mark.parametrize(
    ("point", "profiles"),
    [
        ((100, 100), set(ALL)),
        ((130, 120), set(ALL)),  # the box's corner belongs to it
        ((90, 80), set(ALL)),
        ((131, 120), {"uigenie", "qwen"}),  # 40 wide and 40 high: 4 more pixels a side at 1.2
        ((134, 124), {"uigenie", "qwen"}),
        ((135, 124), {"uigenie"}),
        ((86, 76), {"uigenie", "qwen"}),
        ((86, 75), {"uigenie"}),
        ((142, 156), {"uigenie"}),  # 42 and 56 off: 70 exactly
        ((142, 157), set()),
        ((170, 100), {"uigenie"}),
        ((171, 100), set()),
    ],
)
def test_points_and_the_box(point, profiles):
    assert right(click(*point), CLICK) == profiles
    for name, rule in PROFILES.items():
        hit = name in profiles
        assert rule(click(*point), CLICK) == Score(type=True, grounding=hit, step=hit)


def test_without_a_box_qwen_goes_by_distance_and_strict_by_the_very_point():
    truth = Truth(click(100, 100), Frame(1000, 500))
    assert right(click(100, 100), truth) == set(ALL)
    assert right(click(101, 100), truth) == {"uigenie", "qwen"}
    # 0.04 of each axis by its own length: 40 pixels across, 20 down.
    assert qwen(click(140, 100), truth).step and not qwen(click(141, 100), truth).step
    assert qwen(click(100, 120), truth).step and not qwen(click(100, 121), truth).step
    assert not qwen(click(140, 120), truth).step  # not a rectangle


def test_a_point_near_the_truth_is_right_for_qwen_though_outside_the_box():
    truth = Truth(click(100, 100), Frame(1000, 1000), box=(99, 99, 101, 101))
    assert right(click(140, 100), truth) == {"uigenie", "qwen"}


def test_distances_are_measured_on_the_screen():
    # 0.14 of the diagonal is 138.6 of the square's pixels and 219.1 of the wide screen's, where a pixel
    # of the frame is 2 across and 1 down: so 109.6 across and 219.1 down.
    square, wide = Frame(700, 700), Frame(1400, 700)
    on_square, on_wide = (Truth(click(300, 300), square, screen=screen) for screen in (None, wide))
    assert uigenie(click(438, 300), on_square).step and not uigenie(click(439, 300), on_square).step
    assert uigenie(click(300, 438), on_square).step and not uigenie(click(300, 439), on_square).step
    assert uigenie(click(409, 300), on_wide).step and not uigenie(click(410, 300), on_wide).step
    assert uigenie(click(300, 519), on_wide).step and not uigenie(click(300, 520), on_wide).step


def test_a_click_is_no_long_press_and_its_grounding_is_wrong_then():
    truth = Truth(click(100, 100, "long_press"), FRAME, box=(0, 0, 200, 200))
    for rule in PROFILES.values():
        assert rule(click(100, 100), truth) == Score(type=False, grounding=False, step=False)
        assert rule(click(100, 100, "long_press"), truth) == Score(True, True, True)


@pytest.mark.parametrize(
    ("given", "true", "profiles"),
    [
        ("pizza", "pizza", set(ALL)),
        ("  Pizza\t near  me", "pizza near me", {"uigenie", "qwen", "strict"}),
        ("pizza", "pizza near me", {"uigenie", "qwen"}),
        ("pizza near me now", "pizza near me", {"uigenie", "qwen"}),
        ("p", "pizza", {"uigenie", "qwen"}),  # as published: one letter of it is enough
        ("pasta", "pizza", set()),
        ("me pizza near", "pizza near me", set()),  # F1 is 1, and counts for open alone
        ("", "pizza", set()),
        (" \n", "pizza", set()),
        ("pizza", "", set()),
        ("", "", set()),
        ("ＰＩＺＺＡ", "pizza", {"strict"}),  # full-width letters, which NFKC folds
    ],
)
def test_typed_text(given, true, profiles):
    assert right(typed(given), Truth(typed(true), FRAME)) == profiles
    for rule in PROFILES.values():
        score = rule(typed(given), Truth(typed(true), FRAME))
        assert score.type and score.grounding is None


@pytest.mark.parametrize(
    ("given", "true", "profiles"),
    [
        ("Google Maps", "google maps", set(ALL)),
        ("Maps", "Google Maps", {"uigenie", "qwen"}),
        # Words in common 2, of 3 and 3: F1 is 2/3. No part of each other.
        ("Maps by Google", "Google Maps Go", {"uigenie"}),
        # Words in common 1, of 2 and 2: F1 is 0.5, which is not above it.
        ("Maps Plus", "Maps Go", set()),
        ("", "Google Maps", set()),
        ("Zoom", "Google Maps", set()),
    ],
)
def test_an_app_name(given, true, profiles):
    assert right(typed(given, "open"), Truth(typed(true, "open"), FRAME)) == profiles


def test_a_scroll_down_is_a_swipe_up_and_every_direction_is_told_from_every_other():
    for scroll in DIRECTIONS:
        truth = Truth(Action("swipe", "d", direction=finger_direction(scroll)), FRAME)
        assert right(swipe(scroll), truth) == set()  # the scroll's own word is the wrong way
        assert [d for d in DIRECTIONS if right(swipe(d), truth)] == [finger_direction(scroll)]
        for rule in PROFILES.values():
            assert rule(swipe(scroll), truth) == Score(type=True, grounding=None, step=False)
    down = Truth(Action("swipe", "d", direction=finger_direction("down")), FRAME)
    assert right(swipe("up"), down) == set(ALL)


def test_a_swipe_from_anywhere_is_right_even_if_the_truth_has_a_point():
    assert right(swipe("left"), Truth(swipe("left"), FRAME)) == set(ALL)
    assert uigenie(swipe("left"), Truth(swipe("left"), FRAME)).grounding is None


def test_buttons_waits_and_status():
    assert right(button("Back"), Truth(button("Back"), FRAME)) == set(ALL)
    assert right(button("Home"), Truth(button("Back"), FRAME)) == set()
    assert right(button(""), Truth(button("Back"), FRAME)) == set()
    assert right(button("back"), Truth(button("Back"), FRAME)) == {"uigenie", "qwen"}
    assert right(wait(9.0), Truth(Action("wait", "d"), FRAME)) == set(ALL)
    assert right(end("success"), Truth(end("success"), FRAME)) == set(ALL)
    assert right(end("failure"), Truth(end("success"), FRAME)) == {"qwen"}  # by its type alone
    assert right(end(""), Truth(end("success"), FRAME)) == {"qwen"}


EXAMPLES = [
    typed("Maps", "open"),
    click(100, 100),
    swipe("up"),
    click(7, 9, "long_press"),
    typed("pizza"),
    button("Back"),
    wait(1.0),
    end(),
]
TRUTHS = [((i, 0), Truth(action, FRAME)) for i, action in enumerate(EXAMPLES)]


def constant(action, truths=TRUTHS):
    return report([(key, action) for key, _ in truths], truths)


def steps(reported):
    return [profile["all"]["step"] for profile in reported["profiles"].values()]


def test_the_truth_itself_is_right_everywhere_and_a_wrong_type_never_is():
    for i, action in enumerate(EXAMPLES):
        for j, other in enumerate(EXAMPLES):
            assert right(action, Truth(other, FRAME)) == (set(ALL) if i == j else set())
        assert right(UNPARSABLE, Truth(action, FRAME)) == set()
    perfect = report([(key, truth.action) for key, truth in TRUTHS], TRUTHS)
    assert steps(perfect) == [1.0, 1.0, 1.0]
    assert [profile["episode"] for profile in perfect["profiles"].values()] == [1.0, 1.0, 1.0]
    assert perfect["rows"] == 8 and perfect["missing"] == 0 and perfect["failed"] == {}


def test_a_constant_terminate_scores_the_share_of_terminate_rows_and_no_more():
    for profile in constant(end())["profiles"].values():
        assert profile["all"]["type"] == profile["all"]["step"] == 1 / 8
        assert profile["all"]["grounding"] == 0.0 and profile["all"]["grounding_rows"] == 2
        assert profile["all"]["grounding_published"] is None  # it predicted no point at all
        assert {name: t["step"] for name, t in profile["by_action"].items() if t["step"]} == {
            "terminate": 1.0
        }
    assert steps(constant(end("failure"))) == [0.0, 1 / 8, 0.0]
    assert constant(end())["predicted"] == {"terminate": 8}


def test_an_empty_text_scores_nothing_but_its_type():
    for name in ("type", "open"):
        empty = constant(typed("", name))
        assert steps(empty) == [0.0, 0.0, 0.0]
        assert [p["all"]["type"] for p in empty["profiles"].values()] == [1 / 8] * 3
    no_text = report([(key, parse("", FRAME)) for key, _ in TRUTHS], TRUTHS)
    assert steps(no_text) == [0.0, 0.0, 0.0] and no_text["failed"] == {"no_tool_call": 8}


def test_an_unparsable_predictor_stays_in_every_denominator():
    reported = constant(UNPARSABLE)
    assert steps(reported) == [0.0, 0.0, 0.0]
    assert reported["failed"] == {"malformed_json": 8} and reported["predicted"] == {}
    for profile in reported["profiles"].values():
        assert profile["all"]["rows"] == 8 and profile["all"]["type"] == 0.0
        assert profile["all"]["grounding"] == 0.0 and profile["all"]["grounding_rows"] == 2
        assert sum(t["rows"] for t in profile["by_action"].values()) == 8
        assert profile["episode"] == 0.0 and profile["episodes"] == 8
    # Half right, half unparsable is half, and not all.
    half = [(key, truth.action if key[0] < 4 else UNPARSABLE) for key, truth in TRUTHS]
    assert steps(report(half, TRUTHS)) == [0.5, 0.5, 0.5]


def test_rows_are_paired_by_key_whatever_their_order():
    predictions = [(key, truth.action) for key, truth in TRUTHS]
    assert report(predictions[::-1], TRUTHS) == report(predictions, TRUTHS)
    shifted = [(key, EXAMPLES[i - 1]) for i, (key, _) in enumerate(TRUTHS)]
    assert steps(report(shifted, TRUTHS)) == [0.0, 0.0, 0.0]


def test_a_missing_prediction_is_wrong_and_counted():
    reported = report([(key, truth.action) for key, truth in TRUTHS[:6]], TRUTHS)
    assert reported["missing"] == 2 and reported["rows"] == 8 and reported["failed"] == {}
    assert steps(reported) == [0.75, 0.75, 0.75]
    assert report([], TRUTHS)["missing"] == 8


def test_doubled_and_strange_predictions_and_no_truth_are_user_errors():
    row = (TRUTHS[3][0], end())
    with pytest.raises(UserError, match="two predictions for episode 3, step 0"):
        report([row, row], TRUTHS)
    with pytest.raises(UserError, match="two ground truths for episode 0, step 0"):
        report([], [*TRUTHS, TRUTHS[0]])
    with pytest.raises(UserError, match=r"1 predictions .* \(3, 1\)"):
        report([((3, 1), end())], TRUTHS)
    with pytest.raises(UserError, match="no ground truth"):
        report([], [])


def test_a_report_counted_by_hand():
    boxed = Truth(click(100, 100), FRAME, box=(90, 90, 110, 110))
    truths = [
        (("a", 0), boxed),
        (("a", 1), Truth(typed("pizza near me"), FRAME)),
        (("a", 2), Truth(end(), FRAME)),
        (("b", 0), boxed),
        (("b", 1), Truth(click(100, 100), FRAME)),
    ]
    predictions = [
        (("b", 1), click(100, 100)),
        (("b", 0), swipe("up")),
        (("a", 2), end()),
        (("a", 1), typed("Pizza")),
        (("a", 0), click(115, 100)),
    ]
    reported = report(predictions, truths)
    assert reported["without_box"] == 1
    assert reported["predicted"] == {"click": 2, "swipe": 1, "terminate": 1, "type": 1}
    of = {name: profile["all"] for name, profile in reported["profiles"].items()}
    assert {name: t["type"] for name, t in of.items()} == dict.fromkeys(ALL, 0.8)
    # 15 off: within 70 pixels, and within 1.2 boxes or 0.04·(300) = 12 pixels it is not.
    assert {name: t["step"] for name, t in of.items()} == {
        "uigenie": 0.8,
        "qwen": 0.6,
        "strict": 0.4,
    }
    assert {name: t["grounding"] for name, t in of.items()} == {
        "uigenie": 2 / 3,
        "qwen": 1 / 3,
        "strict": 1 / 3,
    }
    # The click predicted as a swipe is not among the rows that UI-Genie's evaluator grounds.
    assert {name: t["grounding_published"] for name, t in of.items()} == {
        "uigenie": 1.0,
        "qwen": 0.5,
        "strict": 0.5,
    }
    assert of["qwen"]["grounding_rows"] == 3 and of["qwen"]["grounding_published_rows"] == 2
    by_action = reported["profiles"]["strict"]["by_action"]
    assert {name: (t["rows"], t["step"]) for name, t in by_action.items()} == {
        "click": (3, 1 / 3),
        "type": (1, 0.0),
        "terminate": (1, 1.0),
    }
    assert {name: p["episode"] for name, p in reported["profiles"].items()} == {
        "uigenie": 0.5,
        "qwen": 0.0,
        "strict": 0.0,
    }
    assert json.loads(json.dumps(reported)) == reported
    assert table(reported).splitlines() == [
        "| truth | rows | uigenie type/grounding/step | qwen type/grounding/step | "
        "strict type/grounding/step |",
        "|---|---|---|---|---|",
        "| all | 5 | 80.0/66.7/80.0 | 80.0/33.3/60.0 | 80.0/33.3/40.0 |",
        "| click | 3 | 66.7/66.7/66.7 | 66.7/33.3/33.3 | 66.7/33.3/33.3 |",
        "| type | 1 | 100.0/–/100.0 | 100.0/–/100.0 | 100.0/–/0.0 |",
        "| terminate | 1 | 100.0/–/100.0 | 100.0/–/100.0 | 100.0/–/100.0 |",
    ]


@pytest.mark.parametrize(
    ("action", "field"),
    [
        (Action("click", "d"), "coordinate"),
        (Action("long_press", "d", time=1.0), "coordinate"),
        (Action("swipe", "d", coordinate=(1, 1)), "direction"),
        (Action("type", "d"), "text"),
        (Action("open", "d"), "text"),
        (Action("system_button", "d"), "button"),
        (Action("terminate", "d"), "status"),
    ],
)
def test_a_truth_without_what_is_compared_is_refused(action, field):
    with pytest.raises(UserError, match=f"has no {field}"):
        Truth(action, FRAME)


def test_a_box_inside_out_is_refused():
    with pytest.raises(UserError, match="inside out"):
        Truth(click(1, 1), FRAME, box=(5, 0, 4, 1))
    assert strict(click(5, 7), Truth(click(5, 7), FRAME, box=(5, 7, 5, 7))).step
