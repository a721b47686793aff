"""Trajectories: what a view holds, and that the disk gives back what it was given or says why not."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.ui_genie import trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.environment import Element, State
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory
from tests.ui_genie.episodes import (
    ELEMENTS,
    HELP,
    click,
    episode,
    name,
    picture,
    pictures,
    terminate,
)

A, B, C = click("first"), click("second", (70, 60)), click("third", (12, 105))


def write(folder, *given, letters="abcd"):
    trajectory.write(folder, given, pictures(letters))


def test_a_view_holds_what_was_seen_before_the_step(tmp_path):
    of = episode("e", "abcd", [A, B, C])
    write(tmp_path, of)
    shots = tmp_path / "screenshots"
    first = trajectory.view_at(of, 0, shots, images=5)
    assert (first.history, first.screenshots) == ((), (picture("a"),))
    second = trajectory.view_at(of, 2, shots)  # one earlier picture unless told otherwise
    assert second.history == ("first", "second")
    assert second.screenshots == (picture("b"), picture("c"))
    assert second.elements == ELEMENTS and second.frame == of.frame and second.goal == "Press OK"
    assert trajectory.view_at(of, 2, shots, images=0).screenshots == (picture("c"),)
    # as many as there are, where more are asked for
    everything = trajectory.view_at(of, 3, shots, images=5)
    assert everything.screenshots == tuple(picture(letter) for letter in "abcd")
    last = trajectory.view_at(of, 3, shots, images=2)
    assert last.history == ("first", "second", "third")
    assert last.screenshots == tuple(picture(letter) for letter in "bcd")
    assert last.elements == (HELP,)
    for nowhere in (-1, 4):
        with pytest.raises(ValueError, match="no view"):
            trajectory.view_at(of, nowhere, shots)


def test_what_did_not_parse_never_happened(tmp_path):
    of = episode("e", "abb", [A, None], done=False, success=False)
    write(tmp_path, of)
    view = trajectory.view_at(of, 2, tmp_path / "screenshots", images=5)
    assert view.history == ("first",)
    assert view.screenshots == (picture("a"), picture("b"))
    assert trajectory.state_at(of, 2) == State("click-test", 7, (A,))


def test_the_state_before_a_step_is_the_actions_before_it():
    of = episode("e", "abcc", [A, B, terminate()])
    assert trajectory.state_at(of, 0) == State("click-test", 7)
    assert trajectory.state_at(of, 2) == State("click-test", 7, (A, B))
    assert trajectory.state_at(of, 3) == State("click-test", 7, (A, B, terminate()))


@pytest.mark.parametrize(
    ("actions", "at"),
    [([A, B], 2), ([A, terminate()], 1), ([A, terminate("failure")], 1), ([A, None], 1), ([], 0)],
)
def test_the_outcome_is_judged_without_the_agents_own_claim(actions, at):
    of = episode("e", "abb"[: len(actions) + 1], actions)
    assert trajectory.outcome_at(of) == at
    assert trajectory.names(of)[at] == of.final or of.final == name("b")


texts = st.text(st.characters(exclude_categories=()), max_size=8)  # half surrogates among them
scores = st.none() | st.floats(0, 1)
elements = st.builds(
    Element,
    kind=texts,
    text=texts,
    box=st.tuples(*[st.integers(-9, 300)] * 4),
    focused=st.booleans(),
    checked=st.none() | st.booleans(),
)
steps = st.builds(
    Step,
    screenshot=st.sampled_from([name(letter) for letter in "abcd"]),
    elements=st.lists(elements, max_size=2).map(tuple),
    text=texts,
    action=st.sampled_from([None, A, terminate(), Action("long_press", "", (0, 0), time=1.5)]),
    failure=st.none() | texts,
    score=scores,
    label=st.none() | st.booleans(),
)
trajectories = st.builds(
    Trajectory,
    id=texts,
    task=texts,
    seed=st.integers(0, 2**40),
    goal=texts,
    frame=st.builds(Frame, st.integers(1, 5000), st.integers(1, 5000)),
    steps=st.lists(steps, max_size=3).map(tuple),
    final=st.just(name("d")),
    final_elements=st.lists(elements, max_size=2).map(tuple),
    done=st.booleans(),
    success=st.none() | st.booleans(),
    outcome_score=scores,
    source=st.dictionaries(texts, texts | st.integers() | st.lists(texts), max_size=2),
)


@settings(max_examples=15)
@given(given_=st.lists(trajectories, max_size=3, unique_by=lambda of: of.id))
def test_the_disk_gives_back_what_it_was_given(given_, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    write(folder, *given_)
    assert trajectory.read(folder) == given_


def test_a_second_write_replaces_the_list_and_leaves_the_pictures(tmp_path):
    write(tmp_path, episode("one", "ab"), letters="ab")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "screenshots").iterdir()}
    trajectory.write(tmp_path, [episode("two", "abc")], pictures("bc"))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "screenshots").iterdir()}
    assert [of.id for of in trajectory.read(tmp_path)] == ["two"]
    assert after.keys() == pictures("abc").keys()
    assert {key: after[key] for key in before} == before


def test_what_cannot_be_kept_whole_is_not_begun(tmp_path):
    write(tmp_path, episode("one", "ab"))
    before = (tmp_path / "trajectories.jsonl").read_bytes()
    with pytest.raises(ValueError, match="the id 'two'"):
        write(tmp_path, episode("two", "ab"), episode("two", "bc"))
    with pytest.raises(ValueError, match="no screenshot"):
        write(tmp_path, episode("three", "abz"))
    with pytest.raises(ValueError, match="not named by its content"):
        trajectory.write(tmp_path, [], {name("q"): b"another"})
    assert (tmp_path / "trajectories.jsonl").read_bytes() == before


def test_a_full_disk_leaves_the_old_list(tmp_path, monkeypatch):
    write(tmp_path, episode("one", "ab"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        write(tmp_path, episode("two", "ab"))
    monkeypatch.undo()
    assert [of.id for of in trajectory.read(tmp_path)] == ["one"]
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("seed",), True, "'seed' is True, not int"),
        (("goal",), None, "'goal' is None, not str"),
        (("success",), 1, "'success' is 1, not bool or null"),
        (("outcome_score",), "high", "'outcome_score' is 'high', not float or int or null"),
        (("final",), "../../etc/passwd.png", "not HASH.png"),
        (("frame", "width"), 0, "width is 0"),
        (("frame", "depth"), 3, "unknown fields depth"),
        (("colour",), "red", "unknown fields colour"),
        (("steps", 1, "action", "coordinate"), "left", "step 1"),
        (("steps", 1, "action"), 5, "step 1: 'action' is 5, not dict or null"),
        (("steps", 0, "elements", 2, "box"), [1, 2, 3], "step 0, elements 2: 'box' is [1, 2, 3]"),
        (("steps", 0, "elements", 0), 7, "elements 0 is 7, not an object"),
        (("steps", 0), "click", "step 0 is 'click', not an object"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path, path, value, said):
    write(tmp_path, episode("one", "ab"), episode("two", "abc"))
    file = tmp_path / "trajectories.jsonl"
    lines = file.read_text().splitlines()
    record = json.loads(lines[1])
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(lines[0] + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError) as raised:
        trajectory.read(tmp_path)
    assert str(raised.value).startswith(f"{file} line 2")
    assert said in str(raised.value)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Trajectory)])
def test_no_field_has_a_silent_default(tmp_path, field):
    write(tmp_path, episode("one", "ab"))
    file = tmp_path / "trajectories.jsonl"
    record = json.loads(file.read_text())
    del record[field]
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"line 1 has no '{field}'"):
        trajectory.read(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"seed": NaN}', "\udcff"])
def test_a_damaged_line_is_named(tmp_path, line):
    write(tmp_path, episode("one", "ab"))
    file = tmp_path / "trajectories.jsonl"
    file.write_bytes(file.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(UserError, match=r"trajectories\.jsonl line 2"):
        trajectory.read(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        trajectory.read(tmp_path)
    write(tmp_path, episode("one", "ab"))
    (tmp_path / "screenshots" / name("b")).unlink()
    of = trajectory.read(tmp_path)[0]
    with pytest.raises(UserError, match=f"trajectory one: screenshot .*{name('b')}"):
        trajectory.view_at(of, 1, tmp_path / "screenshots")
    line = (tmp_path / "trajectories.jsonl").read_text()
    (tmp_path / "trajectories.jsonl").write_text(line + line)
    with pytest.raises(UserError, match="two trajectories have the id 'one'"):
        trajectory.read(tmp_path)


def test_reading_trajectories_needs_no_jax():
    # viewers and environments start fast, and run where no accelerator is
    code = "import sys, selfevolve_jax.ui_genie.shepherd, selfevolve_jax.ui_genie.corruption"
    code += ", selfevolve_jax.ui_genie.reward_rows; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
