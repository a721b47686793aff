"""`selfevolve android-control`, as typed, on shards of our own: figures worked out by hand for answers
that are given, and a model's own answers, interrupted and gone on with."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import jax
import pytest

from launch.cli import main
from selfevolve_jax import checkpoint
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.state import init_params
from selfevolve_jax.ui_genie import agent, android_control, predictions
from selfevolve_jax.ui_genie.actions import Action, Frame, render
from tests import seeing
from tests.launch.test_cli import place, refused, says, tree
from tests.launch.test_generate import MODEL, STOPS, TEXT, policy
from tests.ui_genie.test_android_control import ACTIONS, features, write_shards

__all__ = ["place", "policy"]  # fixtures

FRAME_OF = android_control.resized(64, 4096, 8)  # as tests.seeing's tower sees a screen


def episode(number, actions=ACTIONS):
    """With screenshots that can be looked at."""
    pngs = [seeing.png(100, 200, seed=100 * number + i) for i in range(len(actions) + 1)]
    return features(number, actions, screenshots=pngs)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """13 rows to test on: of eleven and of two steps; and one episode that no shard has."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(folder, [episode(5)], [episode(8, ACTIONS[1:2]), episode(6, ACTIONS[:1])])
    (folder / "splits.json").write_text('{"train": [8], "validation": [], "test": [5, 6, 7]}')
    (folder / "test_subsplits.json").write_text('{"IDD": [5], "app_unseen": [6]}')
    return folder


@pytest.fixture(scope="module")
def blind(tmp_path_factory, mesh1):
    """A policy that reads text only."""
    model, folder = replace(MODEL, vision=None), tmp_path_factory.mktemp("blind") / "policy"
    params = init_params(model, jax.random.key(0), mesh1)
    checkpoint.save_policy(Policy(params, model, TEXT, STOPS, 0), folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """The numbers of the rows that the model was asked, part by part."""
    numbers, propose = [], agent.propose

    def counted(policy, views, ids, *rest, **options):
        numbers.append(list(ids))
        return propose(policy, views, ids, *rest, **options)

    monkeypatch.setattr(agent, "propose", counted)
    return numbers


def typed(policy, data, *more):
    short = ["--style", "short", "--max-new-tokens", "6"]
    return ["android-control", str(policy[0]), "--folder", str(data), *short, *map(str, more)]


def answering(monkeypatch, text_of):
    """An agent that writes text_of(view, number)."""

    def propose(policy, views, ids, n, **options):
        assert n == 1 and options["sampling"].temperature == 0
        return [[text_of(view, i)] for view, i in zip(views, ids, strict=True)]

    monkeypatch.setattr(agent, "propose", propose)


def figures(out, *names):
    summary = json.loads((out / "summary.json").read_text())
    profiles = summary["profiles"]
    assert list(profiles) == ["uigenie", "qwen", "strict"]
    found = [tuple(round(p["all"][n], 9) for n in names) for p in profiles.values()]
    return summary, found


# Of 13 rows two are the end, two type a text, one clicks and one presses long.
TERMINATE = render(Action("terminate", "done", status="success"))
EMPTY = render(Action("type", "type", text=""))


@pytest.mark.parametrize(
    ("text", "type_", "step", "failed"),
    [
        (TERMINATE, 2 / 13, 2 / 13, {}),
        (EMPTY, 2 / 13, 0.0, {}),
        ("", 0.0, 0.0, {"no_tool_call": 13}),
        ("<tool_call>{</tool_call>", 0.0, 0.0, {"malformed_json": 13}),
    ],
    ids=["terminate", "empty_text", "nothing", "unparsable"],
)
def test_a_constant_answer_scores_what_it_deserves(
    policy, data, place, monkeypatch, capsys, text, type_, step, failed
):
    answering(monkeypatch, lambda view, i: text)
    main(typed(policy, data, "--out", "out"))
    summary, found = figures(place / "out", "type", "step", "grounding")
    assert found == [(round(type_, 9), round(step, 9), 0.0)] * 3
    assert summary["failed"] == failed and summary["rows"] == 13
    shown = capsys.readouterr().out
    cell = f"{100 * type_:.1f}/0.0/{100 * step:.1f}"
    assert f"| all | 13 | {cell} | {cell} | {cell} |" in shown
    assert f"counted as wrong: {sum(failed.values())}" in shown
    assert "that no shard has, and that no figure counts: 1" in shown


def test_the_truth_is_right_and_a_near_click_by_its_profile(policy, data, place, monkeypatch):
    rows = list(android_control.split_rows(data, "test", "low", FRAME_OF, Counter()))
    assert rows[1].frame == Frame(40, 88) and rows[1].action.coordinate == (6, 11)
    assert rows[1].box == (4, 8, 20, 27)

    def truth(view, i):
        assert view.goal == rows[i].asked and view.history == rows[i].history
        assert view.screenshots == (rows[i].screenshot,) and view.frame == rows[i].frame
        return render(rows[i].action)

    answering(monkeypatch, truth)
    main(typed(policy, data, "--setting", "low", "--out", "right"))
    assert figures(place / "right", "type", "step", "grounding")[1] == [(1.0, 1.0, 1.0)] * 3

    def near(view, i):
        # 5 of the frame's 40 pixels to the left: 12.5 of the screen's, whose diagonal is 223.6. The
        # box goes from 4 to 19, and qwen's from 2.5.
        return truth(view, i).replace("[6,11]", "[1,11]")

    answering(monkeypatch, near)
    main(typed(policy, data, "--setting", "low", "--out", "near"))
    less = (1.0, round(12 / 13, 9), 0.5)
    assert figures(place / "near", "type", "step", "grounding")[1] == [(1.0, 1.0, 1.0), less, less]


def test_interrupted_it_asks_the_missing_rows_and_ends_in_the_same_bytes(
    policy, data, place, monkeypatch, capsys, asked
):
    monkeypatch.setattr(predictions, "ROWS_A_PART", 5)
    main(typed(policy, data, "--out", "whole"))
    whole = capsys.readouterr().out
    assert asked == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12]]
    lines = [
        json.loads(line)
        for path in sorted((place / "whole").glob("part_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [(line["episode_id"], line["step"]) for line in lines] == [
        *((5, i) for i in range(11)),
        *((6, i) for i in range(2)),
    ]
    assert len({line["text"] for line in lines}) > 1
    assert all((line["action"] is None) != (line["failure"] is None) for line in lines)
    assert lines[1]["truth"]["coordinate"] == [6, 11] and lines[1]["box"] == [4, 8, 20, 27]
    # Killed in its third part, and by hand without its first.
    propose, left = agent.propose, [3]

    def killed(*all, **options):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return propose(*all, **options)

    monkeypatch.setattr(agent, "propose", killed)
    with pytest.raises(SystemExit) as caught:
        main(typed(policy, data, "--out", "again"))
    assert caught.value.code == 130 and not (place / "again" / "summary.json").exists()
    (place / "again" / "part_00000.jsonl").unlink()
    monkeypatch.setattr(agent, "propose", propose)
    asked.clear()
    main(typed(policy, data, "--out", "again"))
    assert asked == [[0, 1, 2, 3, 4], [10, 11, 12]]
    assert tree(place / "again") == tree(place / "whole")
    # Done: no row is asked, nor read.
    asked.clear()
    capsys.readouterr()
    main(typed(policy, data, "--out", "whole"))
    shown = capsys.readouterr().out
    assert asked == [] and shown == whole[whole.index(str(policy[0])) :]
    assert tree(place / "again") == tree(place / "whole")


def test_a_part_of_other_rows_and_another_request_are_refused(
    policy, data, place, monkeypatch, capsys
):
    answering(monkeypatch, lambda view, i: TERMINATE)
    main(typed(policy, data, "--out", "out"))
    message = refused(capsys, *typed(policy, data, "--out", "out", "--setting", "low"))
    assert says(message, 'setting: "high" -> "low"', "another folder")
    part = place / "out" / "part_00000.jsonl"
    (place / "out" / "summary.json").unlink()
    part.write_text(part.read_text().replace('"step 1"', '"step one"'))
    message = refused(capsys, *typed(policy, data, "--out", "out"))
    assert says(message, "part_00000.jsonl is damaged or of other data", "remove it")


def test_a_limit_reads_no_further(policy, data, place, monkeypatch, capsys):
    write_shards(place, [episode(5, ACTIONS[:2])], [])
    (place / "android_control-00001-of-00002").write_bytes(gzip.compress(b"damaged"))
    (place / "splits.json").write_text('{"test": [5, 6]}')
    answering(monkeypatch, lambda view, i: TERMINATE)
    main(typed(policy, place, "--limit", "3"))
    assert "3 rows of 1 episodes" in capsys.readouterr().out
    message = refused(capsys, *typed(policy, place))
    assert says(message, "android_control-00001-of-00002", "record 0")


def test_a_damaged_screenshot_is_told_by_its_row(policy, place, capsys):
    pngs = [seeing.png(100, 200, seed=i) for i in range(3)]
    pngs[1] = pngs[1][: len(pngs[1]) // 2]
    write_shards(place, [features(5, ACTIONS[:2], screenshots=pngs)])
    (place / "splits.json").write_text('{"test": [5]}')
    message = refused(capsys, *typed(policy, place, "--out", place / "out"))
    assert says(message, "episode 5, step 1: image of", "damaged or cut short", "copy it again")
    assert not list((place / "out").glob("part_*"))


def test_what_cannot_be_evaluated_is_said(policy, blind, data, place, capsys):
    for more, words in [
        (["--folder", "none"], ["none cannot be listed", "Fix: check the path"]),
        (["--split", "dev"], ["no split 'dev'", "train, validation, test, IDD, app_unseen"]),
        (["--limit", "0"], ["limit=0 must be at least 1"]),
        (["--max-new-tokens", "0"], ["max_new_tokens=0"]),
        (["--setting", "middle"], ["middle", "high"]),
        (["--out", data], ["is not empty", "Give another folder"]),
    ]:
        assert says(refused(capsys, *typed(policy, data, *more)), *words), more
    message = refused(capsys, *typed((blind,), data))
    assert says(message, str(blind), "reads text only", "Fix: a vision-language checkpoint")
    message = refused(capsys, *typed(("none",), data))
    assert says(message, "none does not exist")
    (place / "empty").mkdir()
    write_shards(place / "empty", [episode(8, [])])
    (place / "empty" / "splits.json").write_text('{"test": [5, 6]}')
    message = refused(capsys, *typed(policy, place / "empty"))
    assert says(message, "none of the split's 2 episodes is in the shards")
