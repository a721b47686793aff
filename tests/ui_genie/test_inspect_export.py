"""Trajectories to Inspect's log and back by Inspect's own reader. What needs the package is skipped
without it; the refusals are tested in any case."""

import base64
import dataclasses
import errno
import importlib.util
import io
import json
import os

import pytest
from PIL import Image

from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.ui_genie import inspect_export, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame, render
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None,
    reason="inspect-ai is not installed (uv sync --extra inspect)",
)
CLICK = Action("click", "Press <ok>", coordinate=(3, 4))
DONE = Action("terminate", "All done", status="success")


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "png")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")
SHOTS = {trajectory.keep(data): data for data in (RED, BLUE)}
FIRST, SECOND = SHOTS


def one(id="a", success: bool | None = True, outcome: float | None = 0.75, **others):
    element = Element("button", "ok", (0, 0, 8, 6))
    steps = (
        Step(FIRST, (element,), render(CLICK), CLICK, score=0.5, label=True),
        Step(SECOND, (), "<tool_call>{oops\x1b[31m", None, failure="malformed_json"),
        Step(SECOND, (), render(DONE), DONE, score=0.25, label=False),
    )
    made = Trajectory(
        *(
            id,
            "click-button",
            7,
            "Click ok",
            Frame(8, 6),
            steps,
            SECOND,
            (),
            True,
            success,
            outcome,
        ),
        source={"round": 1, "arm": "co_evolution", "policy": "tiny"},
    )
    return dataclasses.replace(made, **others)


@pytest.fixture
def folder(tmp_path):
    ones = [one("r1/ok/7/0.1"), one("b", False, 0.25), one("c", None, None)]
    trajectory.write(tmp_path / "kept", ones, SHOTS)
    return tmp_path / "kept"


def log_of(path):
    from inspect_ai.log import read_eval_log

    return read_eval_log(str(path), resolve_attachments=True)


def image_of(content):
    (found,) = [part for part in content if part.type == "image"]
    head, data = found.image.split(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


# -- without the package


def test_the_missing_package_is_named_with_its_fix(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"inspect-ai is not installed\. Fix: uv sync --extra inspect"
    ):
        inspect_export.export([folder], tmp_path / "log.eval")
    assert not (tmp_path / "log.eval").exists()


def test_half_surrogates_are_replaced_wherever_they_are():
    deep = {"a\ud800": ["\udfff!", {"b": ("c\ud83d",)}], "n": 1, "none": None, "yes": True}
    assert inspect_export._plain(deep) == {
        **{"a�": ["�!", {"b": ["c�"]}], "n": 1, "none": None, "yes": True}
    }
    assert inspect_export._utf8("😀é") == "😀é"  # a whole pair is one character, and stays


# -- with it


@needs_inspect
@pytest.mark.parametrize("ending", ["eval", "json"])
def test_what_inspect_reads_back_is_the_episode(folder, tmp_path, ending):
    path = inspect_export.export([folder], tmp_path / "new" / f"log.{ending}")
    assert [p.name for p in path.parent.iterdir()] == [f"log.{ending}"]
    log = log_of(path)
    assert log.status == "success" and log.eval.task == "ui-genie"
    assert log.eval.model == "selfevolve/tiny" and log.eval.dataset.sample_ids == [
        "r1/ok/7/0.1",
        "b",
        "c",
    ]
    (sample,) = [each for each in log.samples if each.id == "r1/ok/7/0.1"]
    goal, click, after, broken, still, done, last = sample.messages
    assert goal.role == "user" and goal.text == "Click ok" and image_of(goal.content) == RED
    assert sample.input[0].text == "Click ok" and image_of(sample.input[0].content) == RED
    assert click.role == "assistant" and click.text == render(CLICK)
    (call,) = click.tool_calls
    assert call.function == "mobile_use"
    assert call.arguments == {
        **{"action": "click", "coordinate": [3, 4], "action_desc": "Press <ok>"}
    }
    assert after.role == "tool" and after.tool_call_id == call.id
    assert image_of(after.content) == BLUE
    # what did not parse called no tool, so no tool answers it
    assert broken.role == "assistant" and not broken.tool_calls
    assert broken.text == "<tool_call>{oops\x1b[31m"
    assert still.role == "user" and image_of(still.content) == BLUE
    assert done.tool_calls[0].arguments["status"] == "success"
    assert last.role == "tool" and last.tool_call_id == done.tool_calls[0].id != call.id
    assert sample.metadata == {
        **{"task": "click-button", "seed": 7, "done": True, "frame": [8, 6]},
        "steps": [
            {"score": 0.5, "label": True, "failure": None},
            {"score": None, "label": None, "failure": "malformed_json"},
            {"score": 0.25, "label": False, "failure": None},
        ],
        "failures": {"malformed_json": 1},
        "source": {"round": 1, "arm": "co_evolution", "policy": "tiny"},
    }

    for message, step in zip((click, broken, done), sample.metadata["steps"], strict=True):
        if "metadata" in type(message).model_fields:  # older releases have none
            assert message.metadata == step


@needs_inspect
def test_scores_are_there_only_where_the_trajectory_has_one(folder, tmp_path):
    log = log_of(inspect_export.export([folder], tmp_path / "log.eval"))
    scores = {
        sample.id: {name: score.value for name, score in (sample.scores or {}).items()}
        for sample in log.samples
    }
    assert scores == {
        "r1/ok/7/0.1": {"environment": "C", "reward_model": 0.75},
        "b": {"environment": "I", "reward_model": 0.25},
        "c": {},
    }
    results = {score.name: score for score in log.results.scores}
    assert results["environment"].metrics["accuracy"].value == 0.5  # of those that have a verdict
    assert results["reward_model"].metrics["mean"].value == 0.5
    assert results["environment"].metadata == {"scored": 2, "not_scored": 1}
    assert log.results.total_samples == 3


@needs_inspect
def test_hostile_texts_come_back_as_they_were(tmp_path):
    evil = "</script>\x1b]0;x\x07\x00‮ {{x}} attachment://0123"
    made = one(f"id/{evil}", goal=evil, task=evil, source={evil: [evil, "half \ud800"]})
    trajectory.write(tmp_path / "kept", [made], SHOTS)
    sample = log_of(inspect_export.export([tmp_path / "kept"], tmp_path / "log.eval")).samples[0]
    assert sample.id == "id/</script>�]0;x��‮ {{x}} attachment://0123"
    assert sample.messages[0].text == evil and sample.metadata["task"] == evil
    assert sample.metadata["source"] == {evil: [evil, "half �"]}


@needs_inspect
def test_an_episode_without_a_step_and_policies_that_differ(tmp_path):
    ones = [one("a", steps=(), final=FIRST), one("b", source={"policy": "other"})]
    trajectory.write(tmp_path / "kept", ones, SHOTS)
    log = log_of(inspect_export.export([tmp_path / "kept"], tmp_path / "log.eval"))
    assert [len(sample.messages) for sample in log.samples] == [1, 7]
    assert log.eval.model == "selfevolve/agent"


@needs_inspect
def test_refusals_leave_no_log(folder, tmp_path):
    log = tmp_path / "log.eval"
    trajectory.write(tmp_path / "empty", [], {})
    trajectory.write(tmp_path / "again", [one("b")], SHOTS)
    with pytest.raises(UserError, match=r"log\.txt ends in neither \.eval nor \.json"):
        inspect_export.export([folder], tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"no trajectory in .*empty"):
        inspect_export.export([tmp_path / "empty"], log)
    with pytest.raises(UserError, match=r"'b' is in .*kept and in .*again.*one by one"):
        inspect_export.export([folder, tmp_path / "again"], log)
    (folder / "screenshots" / SECOND).unlink()
    with pytest.raises(UserError, match=rf"'r1/ok/7/0.1': screenshot .*{SECOND} cannot be read"):
        inspect_export.export([folder], log)
    assert not log.exists() and not (tmp_path / "log.txt").exists()


@needs_inspect
def test_a_full_disk_leaves_the_old_log(folder, tmp_path, monkeypatch):
    path = inspect_export.export([folder], tmp_path / "log.json")
    before = path.read_bytes()
    assert json.loads(before)["samples"]

    really = os.replace

    def full(source, target):
        if str(target) == str(path):  # Inspect's own files go elsewhere
            raise OSError(errno.ENOSPC, "No space left on device")
        really(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(DiskError, match=r"log\.json: No space left"):
            inspect_export.export([folder], path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"kept", "log.json"}
