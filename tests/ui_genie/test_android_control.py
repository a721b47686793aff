"""AndroidControl's reader on shards of our own: trees, scaling, actions, splits, damage; and the rows
of UI-Genie's published agent data as far as their format is known."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import accessibility, agent_rows, android_control
from selfevolve_jax.ui_genie.accessibility import Node
from selfevolve_jax.ui_genie.actions import Action, Frame, parse, render
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.evaluators import PROFILES
from selfevolve_jax.ui_genie.tfrecord import WireError
from tests.ui_genie.test_tfrecord import block, encoded, number, record

# Accessibility trees, by the field numbers of android_env's protos.


def rect(box) -> bytes:
    # protocol buffers leave zeros out; an int32 below zero takes ten bytes
    return b"".join(number(i, side) for i, side in enumerate(box, 1) if side)


def node(box, *flags: int, text: str = "", description: str = "", view: str = "View") -> bytes:
    out = number(1, 7) + block(2, rect(box)) + block(3, f"android.widget.{view}".encode())
    out += block(4, description.encode()) if description else b""
    out += block(7, text.encode()) if text else b""
    return out + b"".join(number(flag, 1) for flag in flags) + block(25, b"\x01\x02")


def window(layer: int, *nodes: bytes) -> bytes:
    tree = b"".join(block(1, each) for each in nodes)
    return block(1, rect((0, 0, 100, 200))) + number(4, layer) + number(6, 1) + block(11, tree)


def forest(*windows: bytes) -> bytes:
    return b"".join(block(1, each) for each in windows)


CLICKABLE, VISIBLE, CHECKABLE, CHECKED, LONG = 14, 23, 12, 13, 19
TREE = forest(
    window(
        1,
        node((0, 0, 100, 200), VISIBLE),
        node((10, 20, 50, 60), CLICKABLE, VISIBLE, description="card"),
        node((12, 22, 30, 30), VISIBLE, text="Save", view="TextView"),
        node((60, 20, 90, 40), CLICKABLE, VISIBLE, CHECKABLE, CHECKED, view="CheckBox"),
        node((-20, 180, 50, 220), CLICKABLE, VISIBLE, text="low", view="Button"),
        node((0, 100, 100, 120), CLICKABLE, text="hidden"),
    )
)


def test_a_forest_by_hand():
    tree = bytes.fromhex(
        "0a11"  # windows, 17 bytes
        "2002"  # layer 2
        "5a0d"  # tree, 13 bytes
        "0a0b"  # nodes, 11 bytes
        "1204"  # bounds_in_screen, 4 bytes
        "08031805"  # left 3, right 5
        "3a0161"  # text "a"
        "7001"  # is_clickable
    )
    assert accessibility.forest(tree) == [Node(box=(3, 0, 5, 0), text="a", clickable=True, layer=2)]


def test_nodes_of_a_forest():
    nodes = accessibility.forest(TREE)
    assert [each.box for each in nodes][4] == (-20, 180, 50, 220)
    assert nodes[1].clickable and nodes[1].description == "card" and nodes[1].visible
    assert nodes[3].checked and nodes[3].class_name == "android.widget.CheckBox"
    assert not nodes[5].visible


def test_elements_are_what_can_be_acted_on_or_read_on_the_screen():
    assert accessibility.elements(accessibility.forest(TREE), 100, 200) == [
        Element("view", "card", (10, 20, 50, 60)),
        Element("text", "Save", (12, 22, 30, 30)),
        Element("checkbox", "", (60, 20, 90, 40), checked=True),
        Element("button", "low", (0, 180, 50, 200)),
    ]


@pytest.mark.parametrize("data", [b"\x0a\x05a", b"\x08\x01", block(1, block(11, number(1, 1)))])
def test_what_is_no_forest(data):
    with pytest.raises(WireError):
        accessibility.forest(data)


def box_of(nodes, x, y):
    found = accessibility.target(nodes, x, y)
    return None if found is None else found.box


def test_the_target_of_a_click():
    nodes = accessibility.forest(TREE)
    assert box_of(nodes, 15, 25) == (10, 20, 50, 60)  # the card, not the text in it
    assert box_of(nodes, 49, 59) == (10, 20, 50, 60)
    assert box_of(nodes, 50, 59) == (
        0,
        0,
        100,
        200,
    )  # right and bottom are outside; nothing clickable
    assert box_of(nodes, 5, 110) == (0, 0, 100, 200)  # what is hidden was not meant
    assert box_of(nodes, 100, 200) is None
    assert box_of([Node((5, 5, 1, 9), clickable=True, visible=True)], 3, 6) is None  # inside out


def test_a_keyboard_in_front_takes_the_click():
    under = Node((0, 100, 20, 120), clickable=True, visible=True, layer=1)
    key = Node((0, 90, 50, 130), clickable=True, visible=True, layer=3)
    assert accessibility.target([under, key], 5, 110) is key
    assert accessibility.target([key, under], 5, 110) is key
    # a window in front that has nothing to click there takes nothing
    pane = Node((0, 0, 100, 200), visible=True, layer=9)
    assert accessibility.target([pane, under], 5, 110) is under


def test_of_equal_boxes_the_inner_one():
    outer = Node((0, 0, 9, 9), clickable=True, visible=True, text="outer")
    inner = Node((0, 0, 9, 9), clickable=True, visible=True, text="inner")
    assert accessibility.target([outer, inner], 1, 1) is inner


sides = st.integers(1, 3000)


@given(sides, sides, sides, sides, st.data())
@settings(max_examples=100)
def test_scaling_stays_in_the_frame_and_in_the_box(width, height, new_width, new_height, data):
    screen, frame = Frame(width, height), Frame(new_width, new_height)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    x, y = data.draw(st.integers(left, right - 1)), data.draw(st.integers(top, bottom - 1))
    point = android_control.scaled_point(x, y, screen, frame)
    box = android_control.scaled_box((left, top, right, bottom), screen, frame)
    assert 0 <= point[0] < new_width and 0 <= point[1] < new_height
    assert accessibility.contains(box, *point)
    assert box[2] <= new_width and box[3] <= new_height


def test_the_resized_frame_of_a_phone():
    # 1080 x 2400 into 602,112 pixels, by hand: a shrink of sqrt(2592000 / 602112) = 2.0748, and
    # 1080 / 2.0748 = 520.5 = 18.6 units of 28; 2400 / 2.0748 = 1156.7 = 41.3 units.
    assert android_control.resized(3136)(Frame(1080, 2400)) == Frame(18 * 28, 41 * 28)
    assert android_control.resized(3136)(Frame(56, 84)) == Frame(56, 84)


# Episodes.

ACTIONS = [
    {"action_type": "open_app", "app_name": "Notes"},
    {"action_type": "click", "x": 15, "y": 25},
    {"action_type": "long_press", "x": 70, "y": 30},
    {"action_type": "scroll", "direction": "down"},
    {"action_type": "scroll", "direction": "left"},
    {"action_type": "input_text", "text": "Zoë"},
    {"action_type": "type", "x": 1, "y": 1, "text": "b"},
    {"action_type": "navigate_home"},
    {"action_type": "navigate_back"},
    {"action_type": "wait"},
]
INSTRUCTIONS = [f"step {i}" for i in range(len(ACTIONS))]


def features(episode_id=5, actions=ACTIONS, instructions=None, **changes) -> dict:
    n = len(actions) + 1
    told = INSTRUCTIONS[: len(actions)] if instructions is None else instructions
    return {
        "episode_id": [episode_id],
        "goal": ["Write Zoë a note".encode()],
        "screenshots": [b"png %d" % i for i in range(n)],
        "screenshot_widths": [100] * n,
        "screenshot_heights": [200] * n,
        "accessibility_trees": [TREE] * n,
        "actions": [json.dumps(action).encode() for action in actions],
        "step_instructions": [text.encode() for text in told],
    } | changes


def write_shards(folder, *shards: list[dict]) -> None:
    for i, episodes in enumerate(shards):
        data = b"".join(record(encoded(each)) for each in episodes)
        name = f"android_control-{i:05}-of-{len(shards):05}"
        (folder / name).write_bytes(gzip.compress(data))


def halved(screen: Frame) -> Frame:
    return Frame(screen.width // 2, screen.height // 2)


def rows_of(folder, episode, setting="high", counts=None):
    write_shards(folder, [episode])
    counts = Counter() if counts is None else counts
    [read] = android_control.episodes(android_control.shards(folder), frozenset([5]), counts)
    return android_control.rows(read, setting, halved, counts)


EXPECTED = [
    Action("open", "step 0", text="Notes"),
    Action("click", "step 1", coordinate=(7, 12)),
    Action("long_press", "step 2", coordinate=(35, 15), time=2.0),
    # a scroll down is a finger that moves up
    Action("swipe", "step 3", coordinate=(25, 50), direction="up", distance="medium"),
    Action("swipe", "step 4", coordinate=(25, 50), direction="right", distance="medium"),
    Action("type", "step 5", text="Zoë"),
    Action("type", "step 6", text="b"),
    Action("system_button", "step 7", button="Home"),
    Action("system_button", "step 8", button="Back"),
    Action("wait", "step 9", time=2.0),
    Action("terminate", "task has completed", status="success"),
]


def test_the_rows_of_an_episode(tmp_path):
    counts = Counter()
    rows = rows_of(tmp_path, features(), counts=counts)
    assert [row.action for row in rows] == EXPECTED
    assert [row.step for row in rows] == list(range(11))
    assert [row.screenshot for row in rows] == [b"png %d" % i for i in range(11)]
    assert all(row.goal == row.asked == "Write Zoë a note" for row in rows)
    assert all(row.episode_id == 5 and row.frame == Frame(50, 100) for row in rows)
    assert rows[0].history == () and rows[3].history == ("step 0", "step 1", "step 2")
    boxes = {row.step: row.box for row in rows if row.box is not None}
    assert boxes == {1: (5, 10, 25, 30), 2: (30, 10, 45, 20)}
    assert rows[0].elements[1] == Element("text", "Save", (6, 11, 15, 15))
    assert counts == Counter(episodes=1, rows=11, missing_episodes=0)


def test_what_is_asked_in_the_low_setting(tmp_path):
    rows = rows_of(tmp_path, features(), "low")
    assert [row.asked for row in rows] == [*INSTRUCTIONS, "task has completed"]
    assert rows[1].goal == "Write Zoë a note"
    with pytest.raises(UserError, match="'middle'; fix: high or low"):
        rows_of(tmp_path, features(), "middle")


def test_every_true_action_is_right_and_can_be_learnt(tmp_path):
    for row in rows_of(tmp_path, features()):
        assert parse(render(row.action), row.frame) == row.action
        for profile in PROFILES.values():
            score = profile(row.action, android_control.truth(row))
            assert score.step and score.type, (profile.__name__, row.action)


def test_the_far_edges_of_a_box_are_outside(tmp_path):
    row = rows_of(tmp_path, features())[1]
    inside, outside = (Action("click", "", coordinate=place) for place in ((24, 29), (25, 29)))
    assert PROFILES["strict"](inside, android_control.truth(row)).step
    assert not PROFILES["strict"](outside, android_control.truth(row)).step


def test_odd_steps_are_counted(tmp_path):
    counts = Counter()
    episode = features(
        actions=[
            {"action_type": "click", "x": 100, "y": 250},
            {"action_type": "click", "x": 3, "y": 3},
            {"action_type": "navigate_back"},
        ],
        instructions=["a", "", "  "],
        accessibility_trees=[TREE, b"", TREE, TREE],
    )
    rows = rows_of(tmp_path, episode, "low", counts)
    assert rows[0].action.coordinate == (49, 99) and rows[0].box == (0, 0, 50, 100)
    assert rows[1].box is None and rows[1].elements == ()
    assert [row.asked for row in rows[1:3]] == ["Write Zoë a note"] * 2
    assert [row.action.action_desc for row in rows[1:3]] == ["click", "navigate back"]
    assert counts == Counter(
        off_screen=1, without_box=1, without_instruction=2, episodes=1, rows=4, missing_episodes=0
    )


BROKEN = {
    "no known type": {"actions": [{"action_type": "fly"}]},
    "no action type": {"actions": [{}]},
    "no number": {"actions": [{"action_type": "click", "x": "3", "y": 1}]},
    "a bool": {"actions": [{"action_type": "click", "x": True, "y": 1}]},
    "no text": {"actions": [{"action_type": "input_text"}]},
    "direction": {"actions": [{"action_type": "scroll", "direction": "north"}]},
    "no AndroidAccessibilityForest": {"accessibility_trees": [b"\x0a\x05"] * 2},
}
SHAPES = {
    "no feature 'goal'": {"goal": None},
    "'goal' has 2 values, not 1": {"goal": [b"a", b"b"]},
    "'screenshot_widths' has 1 values, not 2": {"screenshot_widths": [100]},
    "'actions' has 2 values, not 1": {"actions": [b"{}", b"{}"]},
    "'step_instructions' is not of bytes": {"step_instructions": [1]},
    "width is 0": {"screenshot_widths": [100, 0]},
    "no JSON object": {"actions": [b"[1]"]},
    "Expecting value": {"actions": [b"click"]},
    "not UTF-8": {"goal": [b"\xff"]},
    "no screenshots": {"screenshots": []},
}


def refused(folder, episode) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(folder, episode)
    return str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_action_names_its_step(tmp_path, name):
    message = refused(tmp_path, features(**{"actions": ACTIONS[:1]} | BROKEN[name]))
    assert "android_control-00000-of-00001, record 0 (episode 5), step 0" in message
    says = {"no action type": "no known type", "a bool": "no number"}.get(name, name)
    assert says in message


@pytest.mark.parametrize("says", SHAPES)
def test_a_wrong_episode_names_its_record(tmp_path, says):
    episode = features(actions=ACTIONS[:1]) | SHAPES[says]
    message = refused(tmp_path, {key: v for key, v in episode.items() if v is not None})
    assert "android_control-00000-of-00001, record 0" in message and says in message


def test_no_example_names_its_record(tmp_path):
    shard = record(encoded(features(4))) + record(b"\x0a\x05")
    (tmp_path / "android_control-00000-of-00001").write_bytes(gzip.compress(shard))
    paths = android_control.shards(tmp_path)
    with pytest.raises(UserError, match=r"record 1: no tf\.Example"):
        list(android_control.episodes(paths, frozenset([4]), Counter()))


def test_a_split_has_its_episodes_only(tmp_path):
    few = ACTIONS[:2]
    write_shards(tmp_path, [features(1, few), features(2, few)], [features(3, few)])
    (tmp_path / "splits.json").write_text('{"train": [1], "validation": [], "test": [3, 2, 9]}')
    (tmp_path / "test_subsplits.json").write_text('{"IDD": [2], "app_unseen": [3]}')

    def ids(split):
        counts = Counter()
        rows = android_control.split_rows(tmp_path, split, "high", halved, counts)
        return [(row.episode_id, row.step) for row in rows], counts["missing_episodes"]

    assert ids("train") == ([(1, 0), (1, 1), (1, 2)], 0)
    assert ids("test") == ([(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)], 1)
    assert ids("app_unseen") == ([(3, 0), (3, 1), (3, 2)], 0)
    with pytest.raises(UserError, match=r"'dev'; fix: one of train, .*, IDD, app_unseen"):
        android_control.split_ids(tmp_path, "dev")
    (tmp_path / "splits.json").write_text('{"train": ["1"]}')
    with pytest.raises(UserError, match="no list of episode numbers"):
        android_control.split_ids(tmp_path, "train")
    (tmp_path / "splits.json").unlink()
    with pytest.raises(UserError, match=r"splits\.json does not exist"):
        android_control.split_ids(tmp_path, "train")


def test_an_episode_twice_is_refused(tmp_path):
    write_shards(tmp_path, [features(1, ACTIONS[:1])], [features(1, ACTIONS[:1])])
    paths = android_control.shards(tmp_path)
    with pytest.raises(UserError, match=r"00001-of-00002, record 0: episode 1 is there a second"):
        list(android_control.episodes(paths, frozenset([1]), Counter()))


def test_a_missing_shard_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no shard"):
        android_control.shards(tmp_path)
    with pytest.raises(UserError, match="cannot be listed"):
        android_control.shards(tmp_path / "nothing")
    write_shards(tmp_path, [], [], [])
    (tmp_path / "android_control-00001-of-00003").unlink()
    with pytest.raises(UserError, match="lacks android_control-00001-of-00003"):
        android_control.shards(tmp_path)


def test_reading_imports_no_jax():
    code = (
        "import sys, selfevolve_jax.ui_genie.android_control, selfevolve_jax.ui_genie.agent_rows\n"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# UI-Genie's published agent data.

CALL = {"name": "mobile_use", "arguments": {"action": "click", "coordinate": [9, 8]}}


def agent_record(arguments=None, progress="Step1: open Notes; Step2: click New", **changes) -> dict:
    call = CALL["arguments"] if arguments is None else arguments
    content = json.dumps({"name": "mobile_use", "arguments": call | {"action_desc": "click Save"}})
    user = f"<image>\nThe user query:  Save it.\nTask progress (You have done this): {progress}\n"
    return {
        "messages": [
            {"role": "system", "content": "The screen's resolution is 504x1148."},
            {"role": "user", "content": user},
            {"role": "assistant", "content": f"<tool_call>\n{content}\n</tool_call>"},
        ],
        "images": ["imgs/7_2.png"],
    } | changes


def read(tmp_path, *records):
    path, counts = tmp_path / "agent.jsonl", Counter()
    path.write_text("\n".join(json.dumps(each) for each in records) + "\n\n")
    return list(agent_rows.read(path, halved, counts)), counts


def test_an_agent_row(tmp_path):
    [row], counts = read(tmp_path, agent_record())
    assert row.goal == "Save it." and row.history == ("open Notes", "click New")
    assert row.image == "imgs/7_2.png" and row.frame == Frame(504, 1148)
    assert row.action == Action("click", "click Save", coordinate=(9, 8)) and not row.marked
    assert row.where.endswith("agent.jsonl line 1")
    assert counts == Counter(rows=1, used=1, set_of_mark=0, set_of_mark_translated=0)


@pytest.mark.parametrize("progress", ["", "None", "none.", "\n"])
def test_a_first_step_has_no_history(tmp_path, progress):
    [row], _ = read(tmp_path, agent_record(progress=progress))
    assert row.history == ()


def test_the_frame_follows_from_the_screens_size(tmp_path):
    record = agent_record(image_wh=[40, 60])
    record["messages"][0]["content"] = "No size here."
    [row], _ = read(tmp_path, record)
    assert row.frame == Frame(20, 30)


MARKED = [{"index": 4}, {"coordinate": 4}, {"coordinate": [4]}, {"mark": "4"}, {"element": 4}]


@pytest.mark.parametrize("place", MARKED)
def test_a_mark_is_recognised(tmp_path, place):
    record = agent_record({"action": "click"} | place)
    rows, counts = read(tmp_path, record)
    assert rows == []
    assert counts == Counter({"rows": 1, "set_of_mark": 1, "left_out: set_of_mark": 1})
    [row], counts = read(tmp_path, record | {"marks": {"4": [10, 20, 31, 40]}})
    assert row.marked and row.action.coordinate == (20, 30)
    assert counts == Counter(rows=1, used=1, set_of_mark=1, set_of_mark_translated=1)


LEFT_OUT = {
    "messages": agent_record(messages=[{"role": "user", "content": "x"}]),
    "images": agent_record(images=["a", "b"]),
    "history": agent_record(progress="Step1: a; Step3: b"),
    "outside_frame": agent_record({"action": "click", "coordinate": [504, 8]}),
    "unknown_action": agent_record({"action": "fly"}),
    "missing_field": agent_record({"action": "swipe", "direction": "up"}),
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_otherwise_is_left_out_by_its_reason(tmp_path, reason):
    rows, counts = read(tmp_path, LEFT_OUT[reason], agent_record())
    assert len(rows) == 1 and counts["rows"] == 2 and counts["used"] == 1
    assert counts[f"left_out: {reason}"] == 1


def test_rows_without_frame_or_prompt(tmp_path):
    frame, prompt = agent_record(), agent_record()
    frame["messages"][0]["content"] = ""
    prompt["messages"][1]["content"] = "Do it."
    _, counts = read(tmp_path, frame, prompt)
    assert counts["left_out: frame"] == counts["left_out: prompt"] == 1


def test_a_damaged_file_of_agent_rows(tmp_path):
    path = tmp_path / "agent.jsonl"
    with pytest.raises(UserError, match="does not exist"):
        list(agent_rows.read(path, halved, Counter()))
    for line, says in [("{", "line 2 is no JSON"), ("[]", "line 2 is no JSON object")]:
        path.write_text(json.dumps(agent_record()) + "\n" + line)
        with pytest.raises(UserError, match=says):
            list(agent_rows.read(path, halved, Counter()))
