"""`selfevolve android-world`, as typed, through the real worker on a stand-in for AndroidWorld's
package that records what it is told. There is no emulator and no package here."""

import json
import os
import sys
import textwrap

import pytest

from launch.cli import main
from selfevolve_jax.ui_genie import agent, trajectory
from selfevolve_jax.ui_genie.actions import Action, render
from tests.launch.test_android_control import answering, blind
from tests.launch.test_cli import place, refused, says, tree
from tests.launch.test_generate import policy
from tests.ui_genie.test_android_world import STAND_IN

__all__ = ["blind", "place", "policy"]  # fixtures

# SaveIt and ShutIt are done by a touch after the task began. FAULT names a file that says what breaks:
# "launch" (no emulator), "reset" (every task), a task's name (its reset).
REGISTRY = """
    import os
    from android_world.env.adb_utils import note
    def fault(): return open(os.environ["FAULT"]).read()
    def calls(): return [line for line in open(os.environ["CALLS"])]
    class SaveIt:
        start_on_home_screen = True
        @classmethod
        def set_device_time(cls, env): pass
        @classmethod
        def generate_random_params(cls): return {}
        def __init__(self, params): self.goal = f"{type(self).__name__} {params['seed']}"
        def initialize_task(self, env):
            if fault() in ("reset", type(self).__name__):
                os._exit(7)
            note("begin", self.goal)
            self.began = len(calls())
        def is_successful(self, env):
            return float(any("tap" in line for line in calls()[self.began:]))
        def tear_down(self, env): pass
    class ShutIt(SaveIt): pass
    class TaskRegistry:
        ANDROID_WORLD_FAMILY = "android_world"
        def get_registry(self, family): return {"ShutIt": ShutIt, "SaveIt": SaveIt}
"""
LAUNCHER = STAND_IN["android_world/env/env_launcher.py"].replace(
    'note("launch"',
    'import os\n            if open(os.environ["FAULT"]).read() == "launch":\n'
    '                raise RuntimeError("no emulator")\n            note("launch"',
)
CLICK = render(Action("click", "click Save", coordinate=(10, 20)))
DONE = render(Action("terminate", "done", status="success"))


@pytest.fixture
def device(place, monkeypatch):
    """(what to break, the calls so far); adb is a program that does nothing."""
    files = STAND_IN | {
        "android_world/registry.py": REGISTRY,
        "android_world/env/env_launcher.py": LAUNCHER,
    }
    for name, text in files.items():
        path = place / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (place / "adb").write_text("#!/bin/sh\n")
    (place / "adb").chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(place / "package"))
    monkeypatch.setenv("FAULT", str(place / "fault"))
    monkeypatch.setenv("CALLS", str(place / "calls"))
    (place / "calls").touch()

    def calls(word="begin"):
        lines = [json.loads(line) for line in (place / "calls").read_text().splitlines()]
        return [line[1] for line in lines if line[0] == word]

    (place / "fault").write_text("")
    return (place / "fault").write_text, calls


def typed(policy, *more, out="out"):
    given = ("--python", sys.executable, "--adb", os.path.abspath("adb"), "--out", out)
    return ["android-world", str(policy[0]), *given, *map(str, more)]


def saving(view, i):
    """Does SaveIt in two steps, and gives the other task up at once."""
    return CLICK if view.goal.startswith("SaveIt") and not view.history else DONE


def found_in(place, out="out"):
    return {
        folder.name: trajectory.read(folder)[0]
        for folder in sorted((place / out / "episodes").iterdir())
    }


def test_success_by_task_and_every_episode_is_kept(policy, place, device, monkeypatch, capsys):
    answering(monkeypatch, saving)
    main(typed(policy, "--episodes", 2, "--seed", 3))
    summary = json.loads((place / "out" / "summary.json").read_text())
    # Wilson's at 95%, by hand: n = 2, z² = 3.8415; 2 of 2 is n/(n + z²) to 1
    low = 2 / (2 + 1.959964**2)
    assert summary["tasks"]["SaveIt"]["interval"] == pytest.approx([low, 1.0], abs=1e-6)
    assert summary["tasks"]["ShutIt"]["interval"] == pytest.approx([0.0, 1 - low], abs=1e-6)
    assert (summary["episodes"], summary["successes"], summary["success"]) == (4, 2, 0.5)
    assert summary["ended"] == {"terminate": 4} and summary["failed"] == {}
    assert summary["steps"] == 6
    assert device[1]() == ["SaveIt 3", "SaveIt 4", "ShutIt 3", "ShutIt 4"]
    found = found_in(place)
    assert list(found) == ["SaveIt-3", "SaveIt-4", "ShutIt-3", "ShutIt-4"]
    assert [one.success for one in found.values()] == [True, True, False, False]
    assert [step.text for step in found["SaveIt-3"].steps] == [CLICK, DONE]
    shown = capsys.readouterr().out
    assert "SaveIt     2 of 2    100.0%  (34.2 to 100.0)" in shown
    assert "all        2 of 4     50.0%" in shown and "ended: terminate 4" in shown
    main(["report", str(place / "out" / "episodes")])
    page = (place / "trajectories.html").read_text()
    assert all(one.id in page for one in found.values())


@pytest.mark.parametrize(
    ("text", "ended", "failed"),
    [
        (DONE, {"terminate": 2}, {}),
        ("I would press Save.", {"unparsable": 2}, {"no_tool_call": 2}),
        (CLICK, {"max_steps": 2}, {}),  # the device says done, and the agent never does
    ],
)
def test_constant_answers_get_nothing(policy, place, device, monkeypatch, text, ended, failed):
    answering(monkeypatch, lambda view, i: text)
    main(typed(policy, "--max-steps", 2))
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert (summary["success"], summary["ended"], summary["failed"]) == (0.0, ended, failed)


def test_interrupted_it_plays_what_is_missing(policy, place, device, monkeypatch, capsys):
    answering(monkeypatch, saving)
    main(typed(policy, "--tasks", "ShutIt", "SaveIt", out="whole"))
    whole, propose, left = tree(place / "whole"), agent.propose, [2]
    capsys.readouterr()

    def killed(*all, **options):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return propose(*all, **options)

    monkeypatch.setattr(agent, "propose", killed)
    with pytest.raises(SystemExit) as caught:
        main(typed(policy, "--tasks", "ShutIt", "SaveIt", out="again"))
    assert caught.value.code == 130
    assert list(found_in(place, "again")) == ["ShutIt-0"]
    monkeypatch.setattr(agent, "propose", propose)
    main(typed(policy, "--tasks", "ShutIt", "SaveIt", out="again"))
    assert tree(place / "again") == whole
    # Done: no emulator is asked, nor needed.
    before = device[1](), device[1]("launch")
    (place / "adb").unlink()
    main(typed(policy, "--tasks", "ShutIt", "SaveIt", out="again"))
    assert (device[1](), device[1]("launch")) == before
    assert "SaveIt     1 of 1" in capsys.readouterr().out
    message = refused(capsys, *typed(policy, "--tasks", "SaveIt", out="again"))
    assert says(message, "tasks", "another folder")


def test_two_emulators_play_at_once(policy, place, device, monkeypatch):
    answering(monkeypatch, saving)
    main(typed(policy, "--emulators", "5554:8554", "5556:8556"))
    assert sorted(device[1]("launch")) == [5554, 5554, 5556]  # the first was asked for its tasks
    assert [one.success for one in found_in(place).values()] == [True, False]


def test_an_episode_that_the_device_broke_is_no_failure(policy, place, device, monkeypatch, capsys):
    answering(monkeypatch, saving)
    device[0]("SaveIt")
    message = refused(capsys, *typed(policy))
    assert says(message, "1 of 2 episodes could not be played", "SaveIt, seed 0", "exit code 7")
    assert not (place / "out" / "summary.json").exists()
    assert list(found_in(place)) == ["ShutIt-0"]
    device[0]("")
    main(typed(policy))
    assert [one.success for one in found_in(place).values()] == [True, False]
    assert device[1]() == ["ShutIt 0", "SaveIt 0"]  # the other was not played again


def test_a_device_that_is_lost_ends_it(policy, place, device, monkeypatch, capsys):
    answering(monkeypatch, saving)
    device[0]("reset")
    message = refused(capsys, *typed(policy, "--episodes", 2))
    assert says(message, "no episode could be played 3 times in a row", "the same command goes on")
    assert not (place / "out" / "episodes").exists()


def test_what_is_missing_is_said_before_weights_are_read(place, device, monkeypatch, capsys):
    nothing = ("none",)  # no checkpoint
    device[0]("launch")
    message = refused(capsys, *typed(nothing))
    assert says(message, "RuntimeError: no emulator", "adb devices", "-grpc 8554")
    device[0]("")
    message = refused(capsys, *typed(nothing, "--tasks", "SaveIt", "Fly"))
    assert says(message, "no task Fly", "some of SaveIt, ShutIt")
    assert says(refused(capsys, *typed(nothing)), "none does not exist")
    monkeypatch.delenv("PYTHONPATH")
    assert says(refused(capsys, *typed(nothing)), "cannot import android_world", "fix: install")
    message = refused(capsys, *typed(nothing, "--python", "/nowhere/python"))
    assert says(message, "/nowhere/python", "Fix: the path of an interpreter")
    message = refused(capsys, *typed(nothing, "--adb", "/nowhere/adb"))
    assert says(message, "adb='/nowhere/adb'", "apt-get install adb")
    for more, words in [
        (["--episodes", "0"], ["episodes=0 must be at least 1"]),
        (["--max-steps", "0"], ["max_steps=0"]),
        (["--seed", "-1"], ["seed=-1"]),
        (["--tasks", "A", "A"], ["name each once"]),
        (["--emulators", "5554"], ["give CONSOLE:GRPC"]),
        (["--out", "package"], ["is not empty", "Give another folder"]),
    ]:
        assert says(refused(capsys, *typed(nothing, *more)), *words), more
    assert not (place / "out").exists()


def test_a_policy_that_reads_text_only_is_refused(blind, device, capsys):
    assert says(refused(capsys, *typed((blind,))), "reads text only")


def test_the_help_says_what_it_was_run_on(capsys):
    with pytest.raises(SystemExit):
        main(["android-world", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "EXERCISED ONLY AGAINST A RECORDED DEVICE" in shown
