"""The whole loop on pages without a browser: what is on disk, that gold is out of reach of all that
learns, and that a run killed anywhere ends in the same bytes."""

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from etils import epath

from launch import cli
from launch.dry_run import describe_ui_genie
from selfevolve_jax import checkpoint, run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.ui_genie import (
    agent,
    reward_metrics,
    reward_rows,
    rounds,
    run,
    tiny,
    trajectory,
)
from selfevolve_jax.ui_genie.actions import parse
from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.explore import Exploration, choose
from selfevolve_jax.ui_genie.miniwob import FRAME
from selfevolve_jax.ui_genie.recipe import AgentTraining, RewardData, UIGenieRecipe, page_seeds
from selfevolve_jax.ui_genie.reward_data import element_at
from selfevolve_jax.ui_genie.reward_model import RewardTraining
from selfevolve_jax.ui_genie.training import TRAINED, plan, train_policy
from tests.ui_genie import pages
from tests.ui_genie.episodes import click, episode
from tests.ui_genie.test_tiny import SMALL

FAST = OptimizerConfig(learning_rate=1e-3, schedule="constant", weight_decay=0.0)
MODEL = replace(SMALL, d_model=32, head_dim=16, d_ff=64, mrope_sections=(2, 3, 3))
RECIPE = UIGenieRecipe(
    tasks=pages.TASKS,
    # Enough to write calls, and to be right at times.
    policy=tiny.BaseConfig(
        model=MODEL,
        steps=200,
        batch=8,
        row_tokens=128,
        optimizer=replace(FAST, learning_rate=1e-2, schedule="cosine", warmup_steps=10),
    ),
    style="short",
    demonstrations=2,
    starts=2,
    held_out=2,
    rounds=2,
    chunk=2,
    exploration=Exploration(candidates=2, keep=2, max_steps=3, named=True, earlier=0),
    max_new_tokens=16,
    rollout=RolloutConfig(slots=16, chunk=16),
    agent=AgentTraining(batch=4, optimizer=FAST),
    reward=RewardTraining(batch=4, optimizer=FAST),
    data=RewardData(continuations=1, failures=4, proposals=2),
    seed=1,
)
ARMS = RECIPE.arms


pytestmark = pytest.mark.usefixtures("home")


def ran(folder, shown, recipe=RECIPE, resume=False):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "miniwob_fleet", lambda tabs, browser: nullcontext(shown))
        return run.run(recipe, folder, resume=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, ran(folder, pages.Pages())


def bytes_of(folder):
    """All that a run made and that says something of its results, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.json*"))
        if not {"checkpoints", "tokenizer"} & set(path.parts) and path.name != run_dir.SUMMARY
    }


def explored(place):
    return [t for chunk in sorted((place / "explored").iterdir()) for t in trajectory.read(chunk)]


def test_every_part_is_on_disk(finished):
    folder, summary = finished
    assert run_dir.read_summary(folder) == run_dir.jsonable(summary)
    assert tuple(summary["arms"]) == ARMS and (folder / run_dir.REPORT).exists()
    for arm in ARMS:
        figures = summary["arms"][arm]
        assert len(figures["rounds"]) == 3 and figures["before"] == figures["rounds"][0]
        for number in (1, 2):
            place = folder / "arms" / arm / f"round-{number}"
            assert (place / "evaluation.json").exists() and (place / "agent").is_dir()
            learns = arm == "co_evolution"
            assert (place / "reward").exists() == (place / "reward_rows.jsonl").exists() == learns
            found = explored(place)
            assert {one.source["arm"] for one in found} == {arm}
            assert (place / "judged.json").exists() == learns
            if learns:
                judged = json.loads((place / "judged.json").read_text())
                assert set(judged) == {one.id for one in found if one.outcome_score is not None}
            shots = {path.name for path in (folder / "screenshots").iterdir()}
            assert all(set(trajectory.names(one)) <= shots for one in found)
    assert "reward_model_f1" not in summary["arms"]["no_reward"]["after"]
    before = [summary["arms"][arm]["before"] for arm in ARMS]
    assert before[0] == before[1] == before[2]


def test_every_failure_is_counted_by_how_it_ended(finished):
    folder, _ = finished
    starts = RECIPE.held_out * len(RECIPE.tasks)
    for place in (folder / "round-0", folder / "arms" / "co_evolution" / "round-2"):
        figures = json.loads((place / "evaluation.json").read_text())
        lost = [one for p in (place / "test").iterdir() for one in trajectory.read(p)]
        lost = [one.source["ended"] for one in lost if not one.success]
        assert lost and figures["failures"] == {how: lost.count(how) for how in set(lost)}
        won = round(figures["agent_success"] * starts)
        assert sum(figures["failures"].values()) == starts - won
    told = run._told({"agent_success": 0.25, "failures": {"unparsable": 2, "done": 1}})
    assert told == "agent success 0.250; failures: 2 unparsable, 1 done"


def test_the_hold_out_has_a_kind_that_training_never_made(finished):
    folder, _ = finished
    of = {row.source for row in reward_rows.read(folder / "hold_out" / "rows.jsonl")}
    learnt = [row for path in folder.rglob("reward_rows.jsonl") for row in reward_rows.read(path)]
    assert "real_failure" in of
    assert learnt and "real_failure" not in {row.source for row in learnt}
    seeds = {row.view.trajectory.split("/")[2] for row in learnt}
    assert not seeds & set(map(str, page_seeds(1, RECIPE.seed, RECIPE.held_out)))


def test_slips_are_of_a_rounds_own_successes(finished):
    folder, _ = finished
    made = {"omitted", "substituted"}
    first = reward_rows.read(folder / "round-0" / "reward_rows.jsonl")
    assert not made & {row.source for row in first}
    found = [row for path in folder.rglob("reward_rows.jsonl") for row in reward_rows.read(path)]
    slipped = [row for row in found if row.source in made]
    assert slipped and {row.view.trajectory.split("/")[0] for row in slipped} <= {
        "round-1",
        "round-2",
    }


def test_what_is_learnt_from_is_chosen_by_the_reward_model_that_the_round_taught(
    finished, tmp_path, monkeypatch, mesh1
):
    """A judge that likes the last of each start's ends best turns the choice round; a round that goes
    on reads what it said."""
    folder, _ = finished
    of_starts: dict[Any, list[trajectory.Trajectory]] = {}
    for one in trajectory.read(folder / "hold_out" / "000000"):  # three samples of every start
        ended = one.source["ended"] in ("done", "max_steps")
        one = replace(one, outcome_score=0.3 if ended else None)
        of_starts.setdefault((one.task, one.seed), []).append(one)
    found = [one for of_start in of_starts.values() for one in choose(of_start)]
    ends = [one for one in found if one.outcome_score is not None]
    last = {(one.task, one.seed): one.id for one in ends}

    def best(of):  # of the starts where anything could be judged
        return {one.id for one in of if one.source["chosen"] and one.outcome_score is not None}

    assert len(ends) > len(last) and best(found) != set(last.values())
    likes = [[0.4 if last[one.task, one.seed] == one.id else 0.1] for one in ends]
    monkeypatch.setattr(rounds, "scorer", lambda models, setting: lambda asked: likes)
    setting = rounds.Setting(RECIPE, mesh1, pages.Pages(), epath.Path(folder), print)
    unread: Any = None
    again = rounds.judged_again(found, unread, setting, epath.Path(tmp_path))
    assert best(again) == set(last.values())
    assert {one.outcome_score for one in again} <= {0.4, 0.1, None}
    assert sorted(one.id for one in again) == sorted(one.id for one in found)
    by_id = {one.id: one for one in found}
    for one in again:
        before = by_id[one.id]
        source = {**one.source, "chosen": before.source["chosen"]}
        assert replace(one, outcome_score=before.outcome_score, source=source) == before

    monkeypatch.delattr(rounds, "scorer")  # a round that goes on reads what was said
    assert rounds.judged_again(found, unread, setting, epath.Path(tmp_path)) == again


def test_gold_is_out_of_reach_of_what_learns(finished, tmp_path):
    """Pages that lie about every episode of a round, but not about demonstrations nor what is held out,
    change nothing but the verdicts that are written down."""
    folder, _ = finished
    first_round = page_seeds(2, RECIPE.seed, 1)[0]
    ran(tmp_path / "run", pages.Pages(lambda s, won: won != (s.seed >= first_round)))
    one, other = bytes_of(folder), bytes_of(tmp_path / "run")
    assert one.keys() == other.keys()

    def without(data):
        return data.replace(b'"success": true', b"").replace(b'"success": false', b"")

    changed = {name for name in one if one[name] != other[name]}
    assert any("/explored/" in name for name in changed)  # the lie was told
    assert {n for n in changed if without(one[n]) != without(other[n])} == set()


@pytest.mark.parametrize("after", [7, 24])
def test_a_run_killed_anywhere_ends_in_the_same_bytes(finished, tmp_path, after):
    folder, summary = finished
    left = [after]

    def count(states):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "run", pages.Pages(before=count))
    again = ran(tmp_path / "run", pages.Pages(), resume=(tmp_path / "run").exists())
    assert again["arms"] == summary["arms"]
    assert bytes_of(tmp_path / "run") == bytes_of(folder)


def test_broken_screens_cost_their_episodes_alone(finished, tmp_path):
    lost = page_seeds(2, RECIPE.seed, 1)[0]
    recipe = replace(RECIPE, arms=("co_evolution",), rounds=1)
    summary = ran(tmp_path / "run", pages.Pages(broken=lambda s: s.seed == lost), recipe)
    place = tmp_path / "run" / "arms" / "co_evolution" / "round-1"
    counts = [json.loads(path.read_text()) for path in place.rglob("counts.jsonl")]
    assert sum(each.get("broken_starts", 0) for each in counts) == len(pages.TASKS)
    assert summary["arms"]["co_evolution"]["after"]["agent_success"] is not None


def test_more_rounds_go_on_from_those_that_are_done(finished, tmp_path):
    recipe = replace(RECIPE, arms=("no_reward",), rounds=1)
    ran(tmp_path / "run", pages.Pages(), recipe)
    more = ran(tmp_path / "run", pages.Pages(), replace(recipe, rounds=2), resume=True)
    assert more["arms"]["no_reward"] == finished[1]["arms"]["no_reward"]


def test_of_a_new_task_nothing_is_known_before_the_rounds(tmp_path):
    """Both models begin without it; the rounds explore it alone, and both are tested on the two."""
    shown, new = pages.TASKS
    ran(tmp_path, pages.Pages(), replace(RECIPE, new_tasks=(new,), rounds=1, arms=ARMS[:1]))
    played = trajectory.read(tmp_path / "demonstrations" / "train")
    assert {one.task for one in played} == {shown}

    def tasks_of(path):
        return {row.view.trajectory.split("/")[1] for row in reward_rows.read(path)}

    assert tasks_of(tmp_path / "round-0" / "reward_rows.jsonl") == {shown}
    assert tasks_of(tmp_path / "hold_out" / "rows.jsonl") == {shown, new}
    place = tmp_path / "arms" / "co_evolution" / "round-1"
    assert {one.task for one in explored(place)} == {new}
    assert set(json.loads((place / "evaluation.json").read_text())["by_task"]) == {shown, new}


def test_the_instructions_of_a_round():
    """By hand: fresh seeds of every task at first; then half of them failures, the later ones, and of
    the rest the tasks that take more steps."""
    lengths = {pages.TASKS[0]: 1, pages.TASKS[1]: 2}
    two = page_seeds(2, RECIPE.seed, 2)
    fresh = [State(task, seed) for task in pages.TASKS for seed in two]
    assert rounds.starts_of(RECIPE, 1, [], lengths) == fresh
    assert set(rounds.starts_of(RECIPE, 2, [], lengths)).isdisjoint(fresh)

    def failed(seed):
        return trajectory.Trajectory(
            f"t{seed}", pages.TASKS[0], seed, "", FRAME, (), "", (), True, False
        )

    third = page_seeds(4, RECIPE.seed, 4)
    again = [State(pages.TASKS[0], seed) for seed in (8, 9)]
    long = [State(pages.TASKS[1], seed) for seed in third]
    found = rounds.starts_of(RECIPE, 3, [failed(s) for s in (7, 8, 8, 9)], lengths)
    assert found == again + long[:2]
    assert rounds.starts_of(RECIPE, 3, [], lengths) == long


def test_a_training_of_so_many_steps_is_no_longer_however_much_there_is(finished, tmp_path, mesh1):
    folder, _ = finished
    shown = trajectory.read(folder / "demonstrations" / "train")
    policy = checkpoint.load_policy(folder / "arms" / "no_reward" / "round-1" / "agent", mesh1)
    for steps, many in ((None, 1), (3, 1), (3, 8)):
        recipe = replace(RECIPE, agent=replace(RECIPE.agent, steps=steps))
        setting = rounds.Setting(recipe, mesh1, pages.Pages(), epath.Path(folder), print)
        place = tmp_path / f"{steps}-{many}"
        rounds.learn_agent(policy, shown * many, setting, 0, place)
        found = json.loads((place / TRAINED).read_text())["steps"]
        views = sum(len(one.steps) for one in shown)
        assert found == (steps or -(-views // RECIPE.agent.batch))


def test_a_round_goes_on_with_the_agent_before_or_begins_with_the_first(
    finished, tmp_path, mesh1, monkeypatch
):
    folder, _ = finished
    before = checkpoint.load_policy(folder / "arms" / "no_reward" / "round-1" / "agent", mesh1)
    shown = trajectory.read(folder / "demonstrations" / "train")
    first, begun = replace(before), []
    monkeypatch.setattr(rounds, "learn_agent", lambda start, *rest: begun.append(start) or start)
    for from_first, start in ((False, before), (True, first)):
        recipe = replace(RECIPE, agent=replace(RECIPE.agent, from_first=from_first))
        place = epath.Path(tmp_path) / str(from_first)
        setting = rounds.Setting(recipe, mesh1, pages.Pages(), place, print)
        nothing = rounds.Learnt((), (), ())
        models, _ = rounds.one_round(
            *(1, "no_reward", rounds.Models(before, before), first, nothing, shown, setting),
            place / "round-1",
        )
        assert begun.pop() is models.agent is start


def test_words_are_of_what_was_hit_in_every_part_of_a_round(finished):
    """Episodes, slips, the reward model's rows, the hold-out: click NAME or nothing, whatever was
    written."""
    folder, _ = finished
    said: dict[str, set[str]] = {"rows": set(), "steps": set()}
    slips = trajectory.read(folder / "arms" / "co_evolution" / "round-1" / "slips")
    said["slips"] = {step.action.action_desc for one in slips for step in one.steps if step.action}
    for path in folder.rglob("*rows.jsonl"):
        rows = reward_rows.read(path)
        said["rows"] |= {row.action.action_desc for row in rows if row.action.action == "click"}
    for arm in ARMS:
        for one in explored(folder / "arms" / arm / "round-1"):
            for step in one.steps:
                if step.action and step.action.action == "click":
                    own = parse(step.text, one.frame)
                    said["steps"].add(step.action.action_desc)
                    assert own.coordinate == step.action.coordinate  # what was done stays
    names = {"ONE", "TWO", "nothing"}
    for part in said:
        assert said[part] and {words.partition(" ")[2] for words in said[part]} <= names


def test_seeds_of_two_purposes_are_apart():
    taken = [set(page_seeds(p, s, 9_999)) for s in (0, 1) for p in (0, 1, 2, 99)]
    assert sum(map(len, taken)) == len(set.union(*taken))


def test_what_cannot_be_run_is_refused():
    for change, match in (
        ({"tasks": ("no-such",)}, "no-such"),
        ({"new_tasks": ("click-link",)}, "new_tasks=click-link: name some of tasks"),
        ({"new_tasks": pages.TASKS}, "not all of them"),
        ({"rounds": 99}, "rounds=99"),
        ({"held_out": 0}, "held_out=0"),
        ({"arms": ()}, "arms="),
        ({"exploration": Exploration(mode="greedy")}, "greedy"),
    ):
        with pytest.raises(UserError, match=match):
            replace(RECIPE, **change)
    with pytest.raises(UserError, match=r"agent\.steps=0 must be at least 1"):
        replace(RECIPE.agent, steps=0)
    with pytest.raises(UserError, match="one process"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.jax, "process_count", lambda: 2)
        run.run(RECIPE, "nowhere")


def test_episodes_that_did_the_same_are_learnt_from_once():
    told = [click("Click OK"), click("Press that")]
    alike = [episode(f"e{i}", "ab", [told[i % 2]], seed=i // 2) for i in range(4)]
    other = episode("other", "ab", [click("Click OK", (31, 60))], seed=0)
    assert rounds._unlike([*alike, other], False) == [alike[0], alike[2], other]
    # where things have names, another pixel of the same thing is the same
    assert element_at(other.steps[0].elements, (31, 60)) is not None
    assert rounds._unlike([*alike, other], True) == [alike[0], alike[2]]


def test_a_class_that_is_empty_is_told_by_name():
    figures = {"agent_success": 0.25, "reward_model_f1": None, "reward_model_f1_step": None}
    figures["reward_model"] = reward_metrics.measure([reward_metrics.Scored(0.2, False, "click")])
    before = run._headline(figures)
    assert run._told(figures) == "agent success 0.250, reward-model F1 no right rows"
    after = {"agent_success": 0.5}  # of an arm without a reward model
    table = run.headline({"arms": {"a": {"before": before, "after": before}}})
    assert table.splitlines()[1].split("  ")[-1].strip() == "no right rows"
    table = run.headline({"arms": {"a": {"before": before, "after": after}}})
    assert "0.250 → 0.500" in table and table.endswith("no model")
    known = {"agent_success": 0.0, "reward_model_f1": 0.5}
    table = run.headline({"arms": {"a": {"before": known, "after": known}}})
    assert table.endswith("0.000 → 0.000    0.500 → 0.500")
    known["reward_model_f1_of_yes"] = 2 / 3
    table = run.headline({"arms": {"a": {"before": known, "after": known}}})
    assert table.splitlines()[-1].split() == ["always", "yes", "0.667"]


def test_a_batch_that_does_not_divide_is_told_before_a_browser_starts(tmp_path, monkeypatch):
    def start(tabs, browser):
        raise AssertionError("a browser was started")

    monkeypatch.setattr(run, "miniwob_fleet", start)
    recipe = replace(RECIPE, agent=replace(RECIPE.agent, batch=4, accumulate=3))
    for does in (lambda: run.run(recipe, tmp_path / "run"), lambda: describe_ui_genie(recipe)):
        with pytest.raises(
            UserError, match=r"agent.batch=4 .*agent.accumulate=3 = 3.*multiple of 3"
        ):
            does()
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_stop_a_training(finished, tmp_path, mesh1):
    folder, _ = finished
    policy = checkpoint.load_policy(folder / "round-0" / "reward", mesh1)
    broken = replace(policy, params=replace(policy.params, embed=policy.params.embed * np.nan))
    shown = trajectory.read(folder / "demonstrations" / "train")
    learnt = agent.examples(shown, folder / "screenshots")

    def batches(done):
        return agent.sft_batches(broken, learnt, "short", size=4, steps=1, seed=0, start=done)

    with pytest.raises(UserError, match="gradient was not finite by step 1"):
        train_policy(broken, tmp_path / "p", plan(broken.model, 1, FAST, False), batches, mesh1)
    assert not (tmp_path / "p" / TRAINED).exists()


def report(*arguments):
    return cli.main(["report", *map(str, arguments)])


def test_the_report_of_a_run_and_of_folders_in_it(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    report(folder, "-o", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (folder / run_dir.REPORT).read_bytes()
    monkeypatch.chdir(tmp_path)
    explored = folder / "arms" / "co_evolution" / "round-1" / "explored"
    report(explored, explored.parent / "test")
    ids = {one.id for chunk in explored.iterdir() for one in trajectory.read(chunk)}
    page = (tmp_path / "trajectories.html").read_text()
    assert ids and all(one in page for one in ids)
    assert capsys.readouterr().out.split() == [str(tmp_path / "again.html"), "trajectories.html"]


def test_what_a_report_cannot_show_is_told(finished, tmp_path, capsys):
    folder, _ = finished
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / run_dir.CONFIG).write_bytes((folder / run_dir.CONFIG).read_bytes())
    srt = tmp_path / "srt"
    srt.mkdir()
    (srt / run_dir.CONFIG).write_text('{"config": {"arms": ["majority"]}}')
    for arguments, says in (
        ((unfinished,), "no arm of"),
        ((folder, srt), "holds no trajectories"),
        ((tmp_path,), "is not a run directory"),
    ):
        with pytest.raises(SystemExit) as ended:
            report(*arguments)
        told = " ".join(capsys.readouterr().err.replace("│", "").split())
        assert ended.value.code == 2 and says in told
