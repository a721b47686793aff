"""`selfevolve agent-sft`, as typed: what is learnt from, that it is learnt, and that a training which
was killed ends in the same weights."""

import json
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from launch.cli import main
from selfevolve_jax import checkpoint, run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import agent, agent_sft, training
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.agent_sft import Shown
from tests import seeing
from tests.launch.test_android_control import FRAME_OF, blind, episode
from tests.launch.test_cli import place, refused, says, tree
from tests.launch.test_generate import policy
from tests.ui_genie.test_android_control import ACTIONS, EXPECTED, agent_record, write_shards

__all__ = ["blind", "place", "policy"]  # fixtures

MARKED = {"action": "click", "index": 4}


def published(folder, *records, name="agent.jsonl"):
    """A file in the published format, and the screenshots that its rows name."""
    (folder / "imgs").mkdir(exist_ok=True)
    for record in records:
        for i, image in enumerate(record["images"]):
            (folder / image).write_bytes(seeing.png(100, 200, seed=i))
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def typed(policy, *more):
    small = ["--style", "short", "--batch", "2", "--learning-rate", "1e-2"]
    return ["agent-sft", str(policy[0]), *small, *map(str, more)]


def weights(folder, mesh):
    return jax.tree.leaves(checkpoint.load_policy(folder, mesh).params)


def test_published_rows_come_in_the_frame_that_the_policy_sees(tmp_path):
    marks = agent_record(MARKED, images=["imgs/b.png"])
    here = agent_record({"action": "swipe", "coordinate": [39, 87], "direction": "up"})
    here["messages"][0]["content"] = "The screen's resolution is 40x88."
    call = json.loads(here["messages"][2]["content"][12:-13])
    call["arguments"]["distance"] = "short"
    here["messages"][2]["content"] = f"<tool_call>{json.dumps(call)}</tool_call>"
    counts = Counter()
    path = published(tmp_path, agent_record(), marks, marks | {"marks": {"4": [0, 0, 9, 9]}}, here)
    first, marked, same = agent_sft.published(path, FRAME_OF, counts)
    # [9, 8] of 504 x 1148: 9 · 40 / 504 = 0.7 and 8 · 88 / 1148 = 0.6
    assert first.action == Action("click", "click Save", coordinate=(0, 0))
    assert first.frame == marked.frame == same.frame == Frame(40, 88)
    assert marked.action.coordinate == (0, 0) and marked.screenshot.name == "b.png"
    assert same.action.coordinate == (39, 87)
    assert counts == Counter(
        {
            "rows": 4,
            "used": 3,
            "set_of_mark": 2,
            "set_of_mark_translated": 1,
            "left_out: set_of_mark": 1,
            "rescaled": 2,
        }
    )
    view = agent_sft.examples([first])[0].view()
    assert view.goal == "Save it." and view.history == ("open Notes", "click New")
    assert view.screenshots == ((tmp_path / "imgs" / "7_2.png").read_bytes(),)
    (tmp_path / "imgs" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"line 3: image .*b\.png cannot be read.*Fix"):
        list(agent_sft.published(path, FRAME_OF, counts))


def test_demonstrated_steps_of_the_train_split_and_their_screenshots(tmp_path):
    shown = episode(3)
    write_shards(tmp_path, [episode(2, ACTIONS[:1]), shown])
    (tmp_path / "splits.json").write_text('{"train": [3], "test": [2]}')
    kept = agent_sft.epath.Path(tmp_path / "kept")

    def steps(settings, counts, elements=False):
        found = agent_sft.demonstrated(tmp_path, settings, FRAME_OF, kept, counts, elements)
        return list(found)

    counts = Counter()
    both = steps(("high", "low"), counts)
    assert counts["rows"] == 22 and counts["episodes"] == 1
    assert [s.action.action for s in both[:11]] == [action.action for action in EXPECTED]
    assert [s.action for s in both[:11]] == [s.action for s in both[11:]]
    assert {s.goal for s in both[:11]} == {"Write Zoë a note"}
    assert [s.goal for s in both[11:13]] == ["step 0", "step 1"]
    assert [s.screenshot.read_bytes() for s in both[:11]] == shown["screenshots"]
    assert len(list(kept.iterdir())) == 11 and both[1].elements == ()
    assert len(steps(("low",), Counter(), elements=True)[1].elements) == 4
    # Screenshots that are there are not written again, and one that is lost is.
    lost, there = both[0].screenshot, both[1].screenshot
    lost.unlink()
    there.write_bytes(b"kept")
    assert steps(("high",), Counter()) == both[:11]
    assert lost.exists() and there.read_bytes() == b"kept"


def test_it_learns_and_what_it_learnt_is_evaluated(policy, place, capsys, mesh1):
    """One episode by heart: it opens an app, and then is done."""
    write_shards(place, [episode(8, ACTIONS[:1])])
    (place / "splits.json").write_text('{"train": [8]}')
    often = ["--epochs", "60", "--setting", "high", "--warmup", "0.1"]
    main(typed(policy, "--android-control", place, "--out", "out", *often))
    shown = capsys.readouterr().out
    assert "2 steps to learn from, 60 batches of 2" in shown and "batch 60 of 60: loss 0.0" in shown
    before, after = weights(policy[0], mesh1), weights("out", mesh1)
    vision = checkpoint.load_policy("out", mesh1).params.vision
    frozen = policy[1].params.vision
    assert all(map(np.array_equal, jax.tree.leaves(vision), jax.tree.leaves(frozen)))
    assert not all(map(np.array_equal, before, after))
    short = ["--folder", str(place), "--style", "short", "--max-new-tokens", "150"]
    main(["android-control", "out", *short, "--split", "train"])
    shown = capsys.readouterr().out
    assert "| all | 2 | 100.0/–/100.0 | 100.0/–/100.0 | 100.0/–/100.0 |" in shown
    assert "counted as wrong: 0" in shown
    main(["generate", "out", "--prompt", "x", "--max-new-tokens", "2"])


def test_killed_and_gone_on_with_it_ends_in_the_same_weights(
    policy, place, capsys, monkeypatch, mesh1
):
    rows = [agent_record({"action": "click", "coordinate": [90 * i, 8]}) for i in range(5)]
    path = published(place, *rows)
    asked = [str(path), "--epochs", "2", "--save-every", "2"]
    main(typed(policy, *asked, "--out", "whole"))
    said = capsys.readouterr().out
    assert f"{path}: rows 5, set_of_mark 0, used 5" in said
    assert "batch 2 of 5" in said and "batch 5 of 5" in said
    step, left = training.supervised_step, [4]

    def killed(*all):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(*all)

    monkeypatch.setattr(training, "supervised_step", killed)
    with pytest.raises(SystemExit) as caught:
        main(typed(policy, *asked, "--out", "again"))
    assert caught.value.code == 130
    monkeypatch.setattr(training, "supervised_step", step)
    again = typed(policy, *asked, "--out", "again")
    message = refused(capsys, *again)
    assert says(message, "again already exists", "--resume", "another --out")
    message = refused(capsys, *again, "--resume", "--learning-rate", "1e-3")
    assert says(message, "learning_rate: 0.01 -> 0.001")
    path.write_text(path.read_text().replace("click Save", "click Load"))
    message = refused(capsys, *again, "--resume")
    assert says(message, "begun with other data", "Fix: give the same data")
    published(place, *rows)
    capsys.readouterr()
    main([*again, "--resume"])
    assert "going on after batch 2" in capsys.readouterr().out
    assert all(map(np.array_equal, weights("again", mesh1), weights("whole", mesh1)))
    # At its end there is nothing to do.
    monkeypatch.setattr(agent, "sft_batches", None)
    before = tree(place / "again")
    main([*again, "--resume"])
    assert tree(place / "again") == before
    told = run_dir.read_config("again")["config"]
    assert told["kind"] == "agent SFT" and told["told"]["data"] == [str(path)]
    assert json.loads((place / "again" / "data.json").read_text())["steps"]["count"] == 5


def test_the_papers_settings_are_the_defaults(policy, place, monkeypatch):
    """By hand: 480 rows are three batches of 160, and 0.05 of three is one of warm-up, rounded up."""
    seen = []
    step = Shown("g", (), agent_sft.epath.Path("x"), Frame(8, 8), Action("wait", "", time=1.0))
    monkeypatch.setattr(agent_sft, "published", lambda *all: [step] * 480)

    def train_policy(policy, folder, made, batches, mesh, accumulate, save_every, tell):
        seen.append((made, policy))
        return policy

    made = []
    monkeypatch.setattr("launch.agent_sft.train_policy", train_policy)
    monkeypatch.setattr("launch.agent_sft.plan", lambda *all: made.append(all))
    (place / "x.jsonl").write_text("")
    main(["agent-sft", str(policy[0]), "x.jsonl", "--out", "out"])
    ((model, steps, optimizer, vision),) = made
    assert (steps, vision, model.param_dtype) == (3, False, "float32")
    assert (optimizer.learning_rate, optimizer.schedule) == (1e-5, "cosine")
    assert optimizer.warmup_steps == 1
    assert seen[0][1].images == seeing.IMAGES


def test_large_screenshots_are_made_no_larger_than_the_papers(policy, tmp_path, mesh1):
    wide = replace(policy[1], images=replace(seeing.IMAGES, max_pixels=12_845_056))
    checkpoint.save_policy(wide, tmp_path)
    config = agent.CheckpointConfig(str(tmp_path))
    loaded, frame_of = agent.load_agent(config, mesh1)
    assert loaded.images == replace(seeing.IMAGES, max_pixels=602_112)
    # 1080 x 2400 is shrunk by 2.0748 to 520.5 x 1156.7: 65 and 144 units of 8.
    assert frame_of(Frame(1080, 2400)) == Frame(65 * 8, 144 * 8)


def test_what_cannot_be_learnt_from_is_said(policy, blind, place, capsys):
    path = published(place, agent_record(MARKED))
    for more, words in [
        ([], ["nothing to learn from", "--android-control FOLDER"]),
        (["none.jsonl"], ["none.jsonl does not exist", "Fix: check the path"]),
        (["--android-control", "none"], ["none cannot be listed"]),
        ([path, "--batch", "3", "--accumulate", "2"], ["batch=3", "accumulate=2", "multiple of 2"]),
        ([path, "--epochs", "0"], ["epochs=0.0 must be above 0"]),
        ([path, "--warmup", "1"], ["warmup=1.0"]),
        ([path, "--save-every", "0"], ["save_every=0"]),
        ([path, "--seed", "-1"], ["seed=-1"]),
    ]:
        assert says(refused(capsys, *typed(policy, *more, "--out", "out")), *words), more
        assert not (place / "out").exists()
    message = refused(capsys, *typed((blind,), path, "--out", "out"))
    assert says(message, str(blind), "reads text only") and not (place / "out").exists()
    message = refused(capsys, *typed(policy, path, "--out", "out"))
    assert says(message, "no row can be learnt from", "stands above")
