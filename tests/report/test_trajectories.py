"""Pages of trajectories written by hand: what the page says is worked out beside it."""

import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfevolve_jax import run_dir
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.report import trajectories
from selfevolve_jax.report.marks import marks
from selfevolve_jax.report.trajectories import chosen, render, write_trajectories_page

ROOT = Path(run_dir.__file__).parents[1]
VOID = {"meta", "br"}
FRAME = {"width": 160, "height": 200}
OK = {
    **{"kind": "button", "text": "ok", "box": [10, 20, 60, 40]},
    "focused": False,
    "checked": None,
}
BODY = {**OK, "kind": "body", "text": "", "box": [0, 0, 160, 200]}
FIELD = {**OK, "kind": "input", "text": "here", "box": [10, 60, 150, 90], "focused": True}


class Page(HTMLParser):
    """Tags that pair, their attributes, ids, rows of tables, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.rows = [], [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "br":
            self.handle_data(" ")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()
        if tag == "p":
            self.text += " "

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.rows and set(self.open) & {"td", "th"}:
            self.rows[-1][-1] += data

    def row(self, first):
        (found,) = [row for row in self.rows if row[0] == first]
        return [" ".join(cell.split()) for cell in found]

    def cards(self):
        return self.tags.count("article")

    def said(self):
        return " ".join(self.text.split())


def png(colour, size=(16, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def name_of(data):
    return hashlib.sha256(data).hexdigest()[:16] + ".png"


RED, BLUE = png("red"), png("blue")


def step(shot=RED, action=None, **others):
    plain = {"elements": [], "text": "", "failure": None, "score": None, "label": None}
    return {"screenshot": name_of(shot), "action": action, **plain, **others}


def act(name="click", desc="Press ok", **fields):
    return {"action": name, **fields, "action_desc": desc}


def one(task="click", seed=0, success: bool | None = True, steps=None, **others):
    steps = [step(action=act(coordinate=[30, 30]))] if steps is None else steps
    return {
        **{"id": f"r1/{task}/{seed}", "task": task, "seed": seed, "goal": "Press ok"},
        **{"frame": FRAME, "steps": steps, "final": name_of(BLUE), "final_elements": []},
        **{"done": True, "success": success, "outcome_score": 0.5, "source": {"round": 1}},
        **others,
    }


def keep(folder, records, shots=(RED, BLUE)):
    (folder / "screenshots").mkdir(parents=True)
    for data in shots:
        (folder / "screenshots" / name_of(data)).write_bytes(data)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "trajectories.jsonl").write_text(lines)
    return folder


def page_of(tmp_path, records, shots=(RED, BLUE), **options):
    folder = keep(tmp_path / "kept", records, shots)
    text = write_trajectories_page([folder], tmp_path / "page.html", **options).read_text()
    return Page(text)


# -- the table


def test_a_task_is_counted_by_hand(tmp_path):
    bad = [step(failure="malformed_json", text="{"), step(failure="outside_frame", text="x")]
    records = [
        one("click", 0, True, outcome_score=0.5),
        one("click", 1, False, steps=[*bad, bad[0]], outcome_score=1.0),
        one("click", 2, None, steps=[], outcome_score=None),
        one("type", 0, None, steps=bad * 3, outcome_score=None),
    ]
    page = page_of(tmp_path, records)
    assert page.row("click") == [
        *("click", "3", "1 of 2 (50%) 1 without a verdict"),
        *("1.3", "0.75"),  # (1 + 3 + 0) / 3 steps, (0.5 + 1) / 2
        *("malformed_json 2, outside_frame 1", "seed 0 ✓ seed 1 ✗ seed 2"),
    ]
    assert page.row("type")[1:6] == ["1", "–", "6.0", "–", "malformed_json 3, outside_frame 3"]
    every = page.row("all tasks")
    assert every[1:3] == ["4", "1 of 2 (50%) 2 without a verdict"] and every[3] == "2.5"
    assert every[5] == "malformed_json 5, outside_frame 4" and every[6] == ""
    assert "4 trajectories, shown in full." in page.said()


def test_one_task_needs_no_row_of_all_and_none_no_table(tmp_path):
    page = page_of(tmp_path, [one()])
    assert [row[0] for row in page.rows] == ["task", "click"]
    assert "1 trajectory, shown in full." in page.said()
    empty = page_of(tmp_path / "none", [])
    assert empty.rows == [] and "There are no trajectories here." in empty.said()


def test_every_anchor_leads_somewhere(tmp_path):
    page = page_of(tmp_path, [one(seed=i, success=i % 2 == 0) for i in range(6)], full=4)
    targets = [v[1:] for _, name, v in page.attributes if name == "href" and v.startswith("#")]
    assert set(targets) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert {"t1", "t2", "t3", "t4", "top"} <= set(targets)


def test_what_the_system_keeps_can_be_shown(tmp_path):
    from selfevolve_jax.ui_genie import trajectory
    from selfevolve_jax.ui_genie.actions import Action, Frame
    from selfevolve_jax.ui_genie.environment import Element

    elements = (Element("button", "ok", (0, 0, 16, 20)),)
    steps = (
        trajectory.Step(name_of(RED), elements, "", Action("click", "Press ok", coordinate=(3, 4))),
        trajectory.Step(name_of(RED), (), "{", None, failure="no_tool_call"),
    )
    made = trajectory.Trajectory(
        *("a", "click", 3, "Press ok", Frame(16, 20), steps, name_of(BLUE), (), True, False, 0.25)
    )
    trajectory.write(tmp_path / "kept", [made], {name_of(shot): shot for shot in (RED, BLUE)})
    page = Page(write_trajectories_page([tmp_path / "kept"], tmp_path / "page.html").read_text())
    assert page.row("click")[1:] == [
        *("1", "0 of 1 (0%)", "2.0", "0.25", "no_tool_call 1", "seed 3 ✗")
    ]
    assert "on button “ok”" in page.said() and page.tags.count("symbol") == 2


# -- how many are shown


def test_each_task_and_verdict_in_turn():
    kinds = "aaaabbbc"
    records = [{"task": kind, "success": kind == "a" or None} for kind in kinds]
    assert chosen(records, 3) == [0, 4, 7]
    assert chosen(records, 5) == [0, 1, 4, 5, 7]
    assert chosen(records, 100) == list(range(8)) and chosen(records, 0) == []
    # a failure is not crowded out by the successes of its task
    assert chosen([*records, {"task": "a", "success": False}], 4) == [0, 4, 7, 8]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([True, False, None]))),
    st.integers(0, 12),
)
def test_as_many_as_there_is_room_for_and_evenly(kinds, full):
    places = chosen([{"task": task, "success": success} for task, success in kinds], full)
    assert len(places) == len(set(places)) == min(full, len(kinds)) and places == sorted(places)
    shown = {kind: sum(kinds[place] == kind for place in places) for kind in kinds}
    for kind, count in shown.items():
        left_out = kinds.count(kind) - count
        assert left_out == 0 or count >= max(shown.values()) - 1


def test_what_is_left_out_is_said(tmp_path):
    page = page_of(tmp_path, [one(seed=i) for i in range(9)], full=2)
    assert page.cards() == 2 and page.row("click")[1] == "9"
    assert "2 of 9 trajectories are shown in full" in page.said()
    assert "the other 7 are left out" in page.said()


def test_a_long_trajectory_is_cut_and_says_so(tmp_path):
    page = page_of(tmp_path, [one(steps=[step(action=act("wait", time=1))] * 45)])
    assert page.tags.count("li") == 40 + 2 and "5 more steps left out; the first 40" in page.said()
    assert page.row("click")[3] == "45.0" and "steps 45" in page.said()


# -- pictures


def test_each_picture_is_stored_once_over_steps_and_folders(tmp_path):
    same = [step(action=act(coordinate=[1, 1]))] * 3
    folders = [keep(tmp_path / str(i), [one(steps=same)] * 2) for i in range(2)]
    path = write_trajectories_page(folders, tmp_path / "out")
    assert path == tmp_path / "out" / "trajectories.html"
    text = path.read_text()
    page = Page(text)
    assert text.count("data:image") == page.tags.count("image") == page.tags.count("symbol") == 2
    assert page.tags.count("use") == 4 * (3 + 1)
    assert f"folder {tmp_path / '1'}" in page.said()  # provenance, where there are several folders


def test_sizes_are_those_of_the_page(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")
    shots = [RED, BLUE, file.getvalue()]
    steps = [step(file.getvalue(), act(coordinate=[1, 1]))]
    said = page_of(tmp_path, [one(steps=steps)], shots).said()
    (told,) = re.findall(r"This page is ([\d.]+) kB, of which ([\d.]+) kB are its 2 pictures", said)
    size = (tmp_path / "page.html").stat().st_size
    sources = re.findall(r'"(data:image[^"]*)"', (tmp_path / "page.html").read_text())
    assert abs(float(told[0]) * 1000 - size) <= 100
    assert abs(float(told[1]) * 1000 - sum(map(len, sources))) <= 50


def test_said_sizes():
    sizes = (0, 999, 1000, 99_949, 123_456, 1_234_567, 250_000_000)
    assert [trajectories.said_size(size) for size in sizes] == [
        *("0 B", "999 B", "1.0 kB", "99.9 kB", "123 kB", "1.2 MB", "250 MB")
    ]


def test_a_large_screen_is_shown_smaller_in_the_same_frame(tmp_path):
    large = png("green", (1080, 2400))
    frame = {"width": 1080, "height": 2400}
    steps = [step(large, act(coordinate=[540, 1200]))]
    page = page_of(tmp_path, [one(steps=steps, frame=frame)], [large, BLUE])
    assert ("symbol", "viewbox", "0 0 360 800") in page.attributes
    assert ("svg", "viewbox", "0 0 1080 2400") in page.attributes
    assert ("circle", "cx", "540") in page.attributes
    (source,) = [v for t, n, v in page.attributes if t == "image" and n == "href" and "jpeg" in v]
    assert source.startswith("data:image/jpeg;base64,")


def test_a_picture_that_is_none_is_said(tmp_path, monkeypatch):
    broken, cut_short = b"no png", RED[:60]
    outside = {**step(action=act("wait", time=1)), "screenshot": "../../secret.png"}
    secret = tmp_path / "secret.png"
    secret.write_bytes(RED)
    steps = [step(shot, act("wait", time=1)) for shot in (broken, cut_short, b"nowhere")]
    page = page_of(tmp_path, [one(steps=[*steps, outside])], [broken, cut_short, BLUE])
    said = page.said()
    assert f"screenshot {name_of(broken)} is damaged or no PNG" in said
    assert f"screenshot {name_of(cut_short)} is damaged or no PNG" in said
    assert f"there is no screenshot {name_of(b'nowhere')} now" in said
    assert "'../../secret.png' is no screenshot's name" in said
    assert page.tags.count("symbol") == 1  # the last screen's
    monkeypatch.setattr(trajectories, "LARGEST_SAFE", 16 * 20 - 1)
    assert "too many pixels" in page_of(tmp_path / "b", [one()]).said()


# -- steps


def test_a_step_says_what_was_done_and_thought(tmp_path):
    steps = [
        step(action=act(coordinate=[30, 30]), elements=[BODY, OK], score=0.875, label=True),
        step(
            action=act("type", "Write it", text="a < b"), elements=[FIELD], score=0.25, label=False
        ),
        step(failure="malformed_json", text="<tool_call>{oops"),
        step(action=act("terminate", "Done", status="success"), text="not shown: it parsed"),
    ]
    source = {"round": 2, "arm": "frozen", "sums": [0.5, 1.0], "none": None}
    said = page_of(tmp_path, [one(steps=steps, source=source)]).said()
    assert "click coordinate [30, 30] Press ok on button “ok” score 0.88 · label positive" in said
    assert "type text a < b Write it on input “here” score 0.25 · label negative" in said
    assert "no action: malformed_json <tool_call>{oops score –" in said
    assert "terminate status success Done score – last screen" in said
    assert "not shown: it parsed" not in said
    assert "round 2 arm frozen sums [0.5, 1.0] none null" in said
    assert "success, says the environment" in said and "seed 0" in said


def test_what_a_round_judged_again_stands_beside_the_first_score(tmp_path):
    """judged.json is the round's; a test's episodes beside have other ids and no second score."""
    explored = keep(tmp_path / "explored/000000", [one(), one(seed=1)])
    again = {one()["id"]: 0.875}
    (tmp_path / "judged.json").write_text(json.dumps(again))
    said = Page(write_trajectories_page([explored], tmp_path).read_text()).said()
    told = "outcome score 0.50, after the reward model had learnt from the round 0.88"
    assert said.count(told) == 1 and said.count("had learnt from the round") == 1
    damaged = {"{": "cannot be read", "[" * 100_000: "cannot be read"}
    damaged |= {"[0.5]": "is damaged", '{"id": "0.5"}': "is damaged"}
    for text, why in damaged.items():
        (tmp_path / "judged.json").write_text(text)
        with pytest.raises(UserError, match=rf"judged\.json {why}.*Fix: restore"):
            write_trajectories_page([explored], tmp_path)


def test_marks_by_hand():
    click = marks(step(action=act(coordinate=[30, 30]), elements=[BODY, OK]), (160, 200))
    assert click["ring"] == (30, 30, 7.2) and click["box"] == (10, 20, 50, 20)
    assert not click["held"] and click["arrow"] is None and click["outside"] is None
    held = marks(step(action=act("long_press", coordinate=[0, 199], time=1)), (160, 200))
    assert held["held"] and held["ring"][:2] == (0, 199) and held["box"] is None
    typed = marks(step(action=act("type", text="x"), elements=[OK, FIELD]), (160, 200))
    assert typed["box"] == (10, 60, 140, 30) and typed["ring"] is None
    assert marks(step(failure="no_tool_call"), (160, 200))["ring"] is None
    # an element that sticks out of the frame is drawn as far as it is inside
    wide = marks(
        step(action=act(coordinate=[5, 5]), elements=[{**OK, "box": [-9, -9, 999, 10]}]), (160, 200)
    )
    assert wide["box"] == (0, 0, 160, 10)
    # the right and lower sides are exclusive
    assert marks(step(action=act(coordinate=[60, 30]), elements=[OK]), (160, 200))["box"] is None


@pytest.mark.parametrize(
    ("direction", "distance", "tip"),
    [
        ("up", "long", (80, 150 - 0.5 * 200)),
        ("left", "medium", (80 - 0.25 * 160, 150)),
        ("right", "short", (80 + 0.125 * 160, 150)),
        ("down", "long", (80, 200 - 0.03 * 200)),  # no further than the frame
    ],
)
def test_a_swipe_points_where_the_finger_goes(direction, distance, tip):
    swipe = act("swipe", coordinate=[80, 150], direction=direction, distance=distance)
    drawn = marks(step(action=swipe, elements=[BODY]), (160, 200))
    assert drawn["arrow"] == tip and drawn["box"] is None


@given(
    *(st.integers(0, 159), st.integers(0, 199)),
    *(
        st.sampled_from(["up", "down", "left", "right"]),
        st.sampled_from(["short", "medium", "long"]),
    ),
)
def test_an_arrow_is_seen_wherever_it_starts(x, y, direction, distance):
    swipe = act("swipe", coordinate=[x, y], direction=direction, distance=distance)
    u, v = marks(step(action=swipe), (160, 200))["arrow"]
    along, across, side = (
        (u - x, v - y, 160) if direction in ("left", "right") else (v - y, u - x, 200)
    )
    assert across == 0 and abs(along) >= 0.119 * side
    assert (along > 0) == (direction in ("down", "right"))
    end, room = (u, 160) if side == 160 else (v, 200)
    assert -0.12 * side <= end <= room + 0.12 * side


def test_a_coordinate_outside_the_frame_is_said_and_not_drawn(tmp_path):
    page = page_of(tmp_path, [one(steps=[step(action=act(coordinate=[160, 3]))])])
    assert "(160, 3) is outside the frame" in page.said() and "circle" not in page.tags


def test_a_success_of_no_verdict_is_no_failure(tmp_path):
    page = page_of(tmp_path, [one(success=None, outcome_score=None)])
    assert "no verdict" in page.said() and "failure" not in page.said().split("Step by step")[1]


# -- hostile texts

EVIL = st.one_of(
    st.text(st.characters(), min_size=1, max_size=40),  # half surrogates and control characters too
    st.sampled_from(
        [
            "</style><script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' onload='alert(1)",
            "{{ 7 * 7 }}{% raw %}",
            "]]><svg onload=alert(1)>",
            "\x1b[31m\x1b]8;;http://x\x07\x9b2J",
            "javascript:alert(1)",
            "‮drow\u2066",
            "&lt;b&gt; &#0; &notanentity",
            "a" * 5000,
        ]
    ),
)


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    return keep(tmp_path_factory.mktemp("shots") / "kept", [])


@settings(max_examples=25)
@given(st.lists(EVIL, min_size=13, max_size=13))
def test_no_text_gets_out_of_its_place(shots, texts):
    def page_with(texts):
        it = iter(texts)
        element = {**OK, "kind": next(it), "text": next(it), "box": [0, 0, 160, 200]}
        fields = {"coordinate": [3, 3], "text": next(it), "direction": next(it)}
        steps = [
            step(action=act(next(it), next(it), **fields), elements=[element], text=next(it)),
            step(failure=next(it), text=next(it)),
        ]
        record = one(next(it), steps=steps, goal=next(it), id=next(it), source={next(it): texts})
        return render([(shots, [record])])

    text = page_with(texts)
    page, tame = Page(text), Page(page_with(["plain"] * 13))
    # the same elements with the same attributes, and only label texts differ in those
    assert page.tags == tame.tags
    differ = [
        (tag, name)
        for (tag, name, value), usual in zip(page.attributes, tame.attributes, strict=True)
        if (tag, name, value) != usual
    ]
    assert set(differ) <= {("svg", "aria-label")}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)
    assert len(text) < 100_000  # long ones are cut
    for said in (texts[4], texts[7], texts[8], texts[9]):  # name, failure, its text, task: all told
        assert trajectories.cut(trajectories.printable(said)) in page.text


def test_the_page_is_self_contained(tmp_path):
    rounds = [{"arm": "a", "round": i, "agent_success": 0.25 * i} for i in range(4)]
    page = page_of(tmp_path, [one()], rounds=rounds)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    for _, name, value in page.attributes:
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:image/"))
    policy = [v for t, n, v in page.attributes if n == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert page.tags.count("figure") == 1 and len(page.ids) == len(set(page.ids))


# -- files


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = keep(tmp_path / "kept", [one()])
    first, second = (write_trajectories_page([folder], tmp_path / f"{i}.html") for i in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": 3}, r"line 2: 'task' is 3, not str"),
        ({"success": 1}, r"line 2: 'success' is 1, not bool or null"),
        ({"frame": {"width": 0, "height": 5}}, r"line 2: 'frame' is .*from 1 to 100,000"),
        ({"frame": {"width": 10**400, "height": 5}}, r"line 2: 'frame' is .*\.\.\., not two sides"),
        ({"steps": [step(), {}]}, r"line 2, step 1 has no 'screenshot'"),
        ({"steps": [step(action={"action": "wait"})]}, r"step 0, action has no 'action_desc'"),
        ({"steps": [step(action=act(coordinate=[1, 2.5]))]}, r"'coordinate' is \[1, 2\.5\], not 2"),
        (
            {"steps": [step(elements=[{**OK, "box": [1]}])]},
            r"element 0: 'box' is \[1\], not 4 whole",
        ),
        ({"goal": ["\x1b[31m"]}, r"'goal' is \['\\x1b\[31m'\], not str"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    folder = keep(tmp_path / "kept", [one(), one(**change)])
    with pytest.raises(UserError, match=message) as raised:
        write_trajectories_page([folder], tmp_path / "page.html")
    assert "trajectories.jsonl line 2" in str(raised.value) and "\x1b" not in str(raised.value)
    assert not (tmp_path / "page.html").exists()


def test_lines_that_are_no_records(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/trajectories\.jsonl does not exist"):
        write_trajectories_page([tmp_path / "nowhere"], tmp_path / "page.html")
    for i, line in enumerate(["{", "[1]", "[" * 100_000, "\udcff"]):
        folder = keep(tmp_path / str(i), [one()])
        with open(folder / "trajectories.jsonl", "ab") as file:
            file.write(b"\n" + line.encode("utf-8", "surrogateescape") + b"\n")
        with pytest.raises(UserError, match=r"trajectories\.jsonl line 3 is .*Fix: mend or remove"):
            write_trajectories_page([folder], tmp_path / "page.html")


def test_a_full_disk_leaves_the_old_page(tmp_path, monkeypatch):
    folder = keep(tmp_path / "kept", [one()])
    page = tmp_path / "page.html"
    page.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskError, match=r"page\.html: No space left"):
            write_trajectories_page([folder], page)
    assert page.read_text() == "old" and sorted(os.listdir(tmp_path)) == ["kept", "page.html"]


def test_it_brings_neither_jax_nor_the_system(tmp_path):
    folder = keep(tmp_path / "kept", [one()])
    code = (
        "import sys; from selfevolve_jax.report.trajectories import write_trajectories_page as w; "
        f"w([{str(folder)!r}], {str(tmp_path / 'p.html')!r}); "
        "print(sorted(m for m in sys.modules if m in ('jax', 'torch', 'selfevolve_jax.ui_genie')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
