"""The climb: which policy starts a stage, what is scored, and that a killed climb ends as another."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from models.config import LoraConfig, ModelConfig
from selfevolve_jax import checkpoint, evaluate, run_dir, trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.srt import levels as srt_levels
from selfevolve_jax.srt.levels import (
    LevelsRecipe,
    climb,
    describe,
    load_levels,
    run_levels,
    stage_seed,
    table,
    without_held_out,
)
from selfevolve_jax.srt.recipe import BaseConfig, CheckpointConfig
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.gym import GymConfig
from selfevolve_jax.trainer import TrainerConfig

MODEL = ModelConfig(
    vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
)


def chains_of(numbers, **options):
    options = {"width": 5, "train_rows": 32, "held_out_rows": 8} | options
    return ArithmeticConfig(numbers=(numbers,), **options)


RECIPE = LevelsRecipe(
    levels=(chains_of(3), chains_of(4), chains_of(5)),
    policy=BaseConfig(
        model=MODEL,
        numbers=(3, 4, 5),
        steps=40,
        batch=32,
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, clip_norm=None),
    ),
    trainer=TrainerConfig(
        steps=3,
        prompts_per_step=4,
        samples_per_prompt=4,
        max_new_tokens=8,
        eval_every=3,
        eval_samples=2,
        save_every=2,
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, clip_norm=None),
        rollout=RolloutConfig(slots=16, chunk=16),
    ),
    warm_start_steps=3,
)
STAGES = ["warm-start", "srt-level2", "srt-level3", "random-level2", "random-level3"]


pytestmark = pytest.mark.usefixtures("home")


def spied(patch):
    """What each stage was given and gave, by its title."""
    seen, real = {}, trainer.train

    def spy(params, model, task, judge, config, **options):
        start = jax.tree.map(np.array, params)
        result = real(params, model, task, judge, config, **options)
        seen[options["title"]] = {
            "start": start,
            "end": jax.tree.map(np.array, result.params),
            "model": model,
            "task": task,
            "judge": judge,
            "steps": config.steps,
            "seed": options["seed"],
        }
        return result

    patch.setattr(trainer, "train", spy)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, summary, stages, keys of all scoring) of the whole recipe."""
    folder, keys, real = tmp_path_factory.mktemp("runs") / "run", [], evaluate.score

    def score(*args, key, **options):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return real(*args, key=key, **options)

    with pytest.MonkeyPatch.context() as patch:
        seen = spied(patch)
        patch.setattr(evaluate, "score", score)
        summary = run_levels(RECIPE, folder)
    return folder, summary, seen, keys


@pytest.fixture
def finished(whole):
    return whole[:3]


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_each_stage_starts_where_the_last_one_ended(finished):
    _, _, seen = finished
    assert list(seen) == STAGES
    for stage, earlier in [
        ("srt-level2", "warm-start"),
        ("srt-level3", "srt-level2"),
        ("random-level2", "warm-start"),
        ("random-level3", "random-level2"),
    ]:
        same(seen[stage]["start"], seen[earlier]["end"])
    for stage in STAGES:  # and goes somewhere
        assert not np.array_equal(seen[stage]["start"].embed, seen[stage]["end"].embed)
    assert not np.array_equal(seen["srt-level3"]["end"].embed, seen["random-level3"]["end"].embed)


def test_ground_truth_warms_the_first_level_and_votes_climb_the_others(finished):
    _, _, seen = finished
    judges = [s["judge"] for s in seen.values()]
    assert judges == ["ground_truth", "majority", "majority", "random", "random"]
    lengths = [
        {r.prompt.rstrip("=").count("") // 2 for r in s["task"].train} for s in seen.values()
    ]
    assert lengths == [{3}, {4}, {5}, {4}, {5}]
    seeds = {name: s["seed"] for name, s in seen.items()}
    assert len(set(seeds.values())) == 3  # a key is used on one level alone
    assert seeds["srt-level2"] == seeds["random-level2"] == stage_seed(0, 2)


def test_the_control_meets_the_same_problems(finished):
    folder = finished[0]

    def rows(arm):
        files = run_dir.sample_steps(folder / "arms" / arm).values()
        return [[row["row"] for row in run_dir.read_samples(file)] for file in files]

    assert rows("srt-level2") == rows("random-level2") and len(rows("srt-level2")) == 3
    assert rows("srt-level2") != rows("srt-level3")


def test_the_summary_and_the_folder(finished):
    folder, summary, _ = finished
    assert run_dir.read_summary(folder) == run_dir.jsonable(summary)
    assert summary.keys() == {"arms", "levels", "matrix", "seconds"} and summary["seconds"] > 0
    assert summary["levels"] == {f"level{n}": f"chains of {n + 2}" for n in (1, 2, 3)}
    assert list(summary["arms"]) == STAGES and list(summary["matrix"]) == ["base", *STAGES]
    for scores in summary["matrix"].values():
        assert list(scores) == ["level1", "level2", "level3"]
        for figures in scores.values():
            assert figures.keys() == {"mean", "majority", "greedy"}
            assert all(0 <= v <= 1 for v in figures.values())
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "summary.json", "report.html", "arms")
    }
    page = (folder / "report.html").read_text()
    assert all(stage in page for stage in STAGES)
    for arm in STAGES:
        assert run_dir.read_config(folder / "arms" / arm)["config"]["arm"] == arm


def test_the_matrix_is_what_the_stored_policies_score(finished, mesh1):
    """Each policy from its own folder, graded here; and what the trainer itself saw of its level."""
    folder, summary, _ = finished
    tasks, base = load_levels(RECIPE, mesh1, lambda text: None)
    policies = {arm: checkpoint.load_policy(folder / "arms" / arm, mesh1) for arm in STAGES}
    for name, policy in {"base": base, **policies}.items():
        for n, task in enumerate(tasks, 1):
            with Equivalence("exact") as equivalence:
                greedy = evaluate.score(
                    policy.params,
                    policy.model,
                    task,
                    task.held_out,
                    equivalence,
                    k=2,
                    key=jax.random.key(9),
                    sampling=RECIPE.trainer.sampling,
                    max_new_tokens=8,
                    mesh=mesh1,
                    rollout=RECIPE.trainer.rollout,
                ).greedy
            assert summary["matrix"][name][f"level{n}"]["greedy"] == greedy
    arms, matrix = summary["arms"], summary["matrix"]
    assert arms["warm-start"]["before"]["greedy"] == matrix["base"]["level1"]["greedy"]
    assert arms["srt-level3"]["before"]["greedy"] == matrix["srt-level2"]["level3"]["greedy"]
    assert arms["srt-level3"]["after"]["greedy"] == matrix["srt-level3"]["level3"]["greedy"]


def test_no_random_number_is_drawn_twice(whole):
    """The matrix has 6 × 3 keys of its own; a stage two, which the control has in common with SRT."""
    keys = whole[3]
    assert len(keys) == 18 + 5 * 2 and len(set(keys)) == 18 + 3 * 2


def test_a_finished_climb_is_resumed_without_work(finished, monkeypatch, capsys):
    folder, summary, _ = finished
    logs = {arm: (folder / "arms" / arm / run_dir.METRICS).read_bytes() for arm in STAGES}
    monkeypatch.setattr(evaluate, "score", lambda *a, **k: pytest.fail("scored again"))
    again = run_levels(RECIPE, folder, resume=True)
    assert again["matrix"] == summary["matrix"] and again["arms"] == summary["arms"]
    assert again["seconds"] >= summary["seconds"]
    for arm in STAGES:
        assert (folder / "arms" / arm / run_dir.METRICS).read_bytes() == logs[arm]
    assert capsys.readouterr().out.rstrip().splitlines()[-3:] == climb(RECIPE, again).splitlines()


@pytest.mark.slow
def test_a_killed_climb_ends_as_an_undisturbed_one(finished, monkeypatch, tmp_path):
    """Killed in the middle of a stage; then the rest of SRT's chain; the control is added last."""
    _, summary, seen = finished
    here, real = tmp_path / "run", trainer.files.write_samples

    def killed(where, step, rows):
        if where.name == "srt-level3" and step == 3:
            raise KeyboardInterrupt
        return real(where, step, rows)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.files, "write_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            run_levels(replace(RECIPE, control=False), here)
    stored = run_dir.read_summary(here)
    assert list(stored["matrix"]) == ["base", "warm-start", "srt-level2"]
    assert read_metrics(here / "arms" / "srt-level3" / run_dir.METRICS)[-1]["step"] < 3
    with monkeypatch.context() as patch:
        half = spied(patch)
        run_levels(replace(RECIPE, control=False), here, resume=True)
        assert list(half) == STAGES[:3]
    with monkeypatch.context() as patch:
        again = spied(patch)
        ended = run_levels(RECIPE, here, resume=True)
    assert ended["matrix"] == summary["matrix"] and ended["arms"] == summary["arms"]
    for stage in STAGES:
        same(again[stage]["end"], seen[stage]["end"])


def stubbed(patch):
    """A trainer and a scorer that do nothing but tell what they were asked."""
    asked = []

    def train(params, model, task, judge, config, **options):
        asked.append((options["title"], judge, config.steps))
        return trainer.Result({}, {}, None, params)

    figures = evaluate.Scores(0.25, 0.5, 0.75, None, [])  # pyright: ignore[reportArgumentType]
    patch.setattr(trainer, "train", train)
    patch.setattr(evaluate, "score", lambda *a, **k: figures)
    patch.setattr(srt_levels, "write_report", lambda *a: "report")
    return asked


def test_a_climb_without_a_warm_start_begins_with_votes(tmp_path, monkeypatch):
    asked = stubbed(monkeypatch)
    run_levels(replace(RECIPE, warm_start_steps=7), tmp_path / "warm")
    assert asked == [
        ("warm-start", "ground_truth", 7),
        *[(f"srt-level{n}", "majority", 3) for n in (2, 3)],
        *[(f"random-level{n}", "random", 3) for n in (2, 3)],
    ]
    asked.clear()
    recipe = replace(RECIPE, levels=RECIPE.levels[:2], warm_start_steps=0, control=False)
    summary = run_levels(recipe, tmp_path / "cold")
    assert asked == [("srt-level2", "majority", 3)]
    assert list(summary["matrix"]) == ["base", "srt-level2"]
    assert climb(recipe, summary).startswith("the climb, greedy, from base")


def test_a_level_without_gold_is_climbed_unscored(tmp_path, monkeypatch):
    stubbed(monkeypatch)
    real = srt_levels.load_levels

    def load(*args, **options):
        (one, two), policy = real(*args, **options)
        return [one, replace(two, held_out=[r.hide_gold() for r in two.held_out])], policy

    monkeypatch.setattr(srt_levels, "load_levels", load)
    recipe = replace(RECIPE, levels=RECIPE.levels[:2], control=False)
    matrix = run_levels(recipe, tmp_path / "run")["matrix"]
    assert all(scores["level1"] and scores["level2"] == {} for scores in matrix.values())


def test_adapters_climb_too(tmp_path, monkeypatch):
    """The first stage adds them; the next one, and the scoring, are told of them."""
    models, scored = [], []
    stubbed(monkeypatch)

    def train(params, model, *args, **options):
        models.append(model.lora.rank)
        return trainer.Result({}, {}, None, params)

    def score(params, model, *args, **options):
        scored.append(model.lora.rank)
        return evaluate.Scores(0.25, 0.5, 0.75, None, [])  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(evaluate, "score", score)
    config = replace(RECIPE.trainer, lora=LoraConfig(rank=2))
    run_levels(replace(RECIPE, trainer=config, control=False), tmp_path / "run")
    assert models == [0, 2, 2]
    assert scored == [0] * 3 + [2] * 9


def test_what_a_level_holds_out_no_level_trains_on(monkeypatch, mesh1):
    """Two levels of the same length, and another seed's rows among them; the base avoids all."""
    recipe = replace(RECIPE, levels=(chains_of(3), chains_of(3, held_out_rows=30), chains_of(4)))
    told, real = [], srt_levels.get_base
    monkeypatch.setattr(
        srt_levels,
        "get_base",
        lambda *a: told.append({r.prompt for r in a[1].held_out}) or real(*a),
    )
    tasks, _ = load_levels(recipe, mesh1, lambda text: None)
    asked = {row.prompt for task in tasks for row in task.held_out}
    assert told == [asked] and len(asked) == 30 + 8  # level 1's 8 are among level 2's 30
    assert not asked & {row.prompt for task in tasks for row in task.train}
    whole = arithmetic.load_task(chains_of(3), 0)
    first = whole.held_out[0]
    one, two = without_held_out([whole, replace(whole, held_out=[whole.train[3], first])])
    assert one.train == two.train == [*whole.train[:3], *whole.train[4:]]
    assert one.counts["held_out_by_a_level"] == 1 and one.held_out == whole.held_out
    with pytest.raises(UserError, match=r"level 2 \(arithmetic\): every training problem"):
        without_held_out([whole, replace(whole, train=[first])])


def test_pictures_tell_questions_apart():
    whole = arithmetic.load_task(chains_of(3), 0)
    seen = replace(whole.train[0], images=(b"a",))
    other = replace(seen, images=(b"b",))
    (kept,) = without_held_out([replace(whole, train=[seen, other], held_out=[seen])])
    assert kept.train == [other]


def test_a_warm_start_needs_gold(monkeypatch, mesh1):
    task = arithmetic.load_task(chains_of(3), 0)
    unlabelled = replace(task, train=[row.hide_gold() for row in task.train])
    monkeypatch.setattr(srt_levels.srt, "load", lambda *a: (unlabelled, None))
    monkeypatch.setattr(srt_levels.srt, "load_task", lambda *a: replace(unlabelled, held_out=[]))
    recipe = replace(
        RECIPE,
        levels=(DataConfig("a.jsonl"), DataConfig("b.jsonl", answer_column=None)),
        policy=CheckpointConfig("runs/x"),
    )
    with pytest.raises(
        UserError, match=r"warm_start_steps=3 needs gold .* level 1 \(a.jsonl train"
    ):
        load_levels(recipe, mesh1, lambda text: None)
    tasks, _ = load_levels(replace(recipe, warm_start_steps=0), mesh1, lambda text: None)
    assert len(tasks) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": RECIPE.levels[:1]}, "levels has 1"),
        ({"warm_start_steps": -1}, "warm_start_steps=-1"),
        ({"seed": -1}, "seed=-1"),
        (
            {"levels": (chains_of(3), chains_of(4, width=6))},
            "widths 5, 6.*Give all the same, 4 or more",
        ),
        (
            {"levels": (chains_of(3), GymConfig("chain_sum"))},
            "mix the arithmetic task with tasks of text.*chains of 3, chain_sum",
        ),
        (
            {"levels": (chains_of(3, width=6), chains_of(6, width=6))},
            r"level 2 \(chains of 6\): trainer.max_new_tokens=8 .* at least 10",
        ),
        (
            {"levels": (GymConfig("chain_sum"), GymConfig("chain_sum"))},
            r"level 1 \(chain_sum\): policy is a base made for the arithmetic task",
        ),
        (
            {"policy": BaseConfig(model=MODEL, numbers=(6,))},
            r"level 1 \(chains of 3\): task.width=5 is less .* policy.numbers=\(6,\)",
        ),
    ],
)
def test_bad_recipes_are_refused_by_name(change, said):
    with pytest.raises(UserError, match=said):
        replace(RECIPE, **change)


def test_a_level_that_cannot_be_made_is_named(tmp_path):
    recipe = replace(RECIPE, levels=(chains_of(2, train_rows=900), chains_of(4)))
    with pytest.raises(UserError, match=r"level 1 \(chains of 2\): .* Ask for at most 150"):
        run_levels(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resume_that_changes_the_climb_is_refused(finished):
    folder = finished[0]
    with pytest.raises(UserError, match="warm_start_steps: 3 -> 4"):
        run_levels(replace(RECIPE, warm_start_steps=4), folder, resume=True)
    with pytest.raises(UserError, match="not empty"):
        run_levels(RECIPE, folder)


def test_what_the_terminal_shows():
    figures = {"mean": 0.25, "majority": 0.5, "greedy": 0.375}
    better = figures | {"greedy": 0.875}
    recipe = replace(RECIPE, levels=RECIPE.levels[:2], control=False)
    summary = {
        "levels": {"level1": "chains of 3", "level2": "chains of 4"},
        "matrix": {
            "base": {"level1": figures, "level2": {}},
            "warm-start": {"level1": better, "level2": figures},
            "srt-level2": {"level1": better, "level2": better},
        },
    }
    lines = table(summary).splitlines()
    assert lines[:2] == ["level1: chains of 3", "level2: chains of 4"]
    assert lines[2].split() == ["greedy", "/", "mean", "level1", "level2"]
    assert lines[3].split() == ["base", "0.375", "/", "0.250", "no", "gold"]
    assert lines[5].split() == ["srt-level2", *["0.875", "/", "0.250"] * 2]
    assert climb(recipe, summary).splitlines() == [
        "the climb, greedy, from warm-start to the last level's policy:",
        "srt     level2 0.375 → 0.875",
    ]
    summary["matrix"]["srt-level2"]["level2"] = {}
    assert climb(recipe, summary).endswith("srt     level2 no gold")


def test_names_of_levels():
    assert describe(ArithmeticConfig(numbers=(2, 3), width=0)) == "chains of 2, 3"
    assert describe(GymConfig("chain_sum", options={"min_terms": 3})) == "chain_sum min_terms=3"
    assert describe(DataConfig("a/b", subset="all")) == "a/b all train"
