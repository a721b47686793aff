"""A whole recipe in one process: arms side by side, gold out of reach, resumed to the same bits."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from launch.cli import main
from selfevolve_jax import checkpoint, evaluate, run_dir, trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.mm_upt.recipe import BaseConfig, MMUPTRecipe
from selfevolve_jax.mm_upt.run import load, load_task, run
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.pictures import PicturesConfig
from selfevolve_jax.trainer_config import TrainerConfig
from tests.mm_upt.test_base import MODEL

RECIPE = MMUPTRecipe(
    task=PicturesConfig(train_rows=20, held_out_rows=5),
    policy=BaseConfig(model=MODEL, drawings=10, steps=2, batch=4),
    trainer=TrainerConfig(
        steps=2,
        prompts_per_step=4,
        samples_per_prompt=4,
        shared_prompt=4,
        max_new_tokens=12,
        eval_every=2,
        eval_samples=2,
        save_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, clip_norm=None),
        grpo=replace(MMUPTRecipe().trainer.grpo, minibatches=2),
        rollout=RolloutConfig(slots=16, chunk=12),
    ),
    arms=("mm_upt", "supervised", "random", "filter"),
)


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, summary, judges' rows by arm) of the whole recipe."""
    folder, seen, real = tmp_path_factory.mktemp("runs") / "run", {}, trainer.make_judge

    def spied(name, *args, **options):
        judge, needs_gold = real(name, *args, **options)
        rows_seen = seen.setdefault(len(seen), [])

        def watched(rows, *rest):
            rows_seen.extend(rows)
            return judge(rows, *rest)

        return watched, needs_gold

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_judge", spied)
        summary = run(RECIPE, folder)
    return folder, summary, dict(zip(RECIPE.arms, seen.values(), strict=True))


def test_the_summary_has_the_documented_shape(finished):
    folder, summary, _ = finished
    assert run_dir.read_summary(folder) == run_dir.jsonable(summary)
    assert tuple(summary["arms"]) == RECIPE.arms and summary["seconds"] > 0
    for figures in summary["arms"].values():
        for when in ("before", "after"):
            assert figures[when].keys() == {"mean", "majority", "greedy"}
    # The first and the last step of each arm, two pictures each.
    assert (folder / run_dir.REPORT).read_text().count("<img") == 4 * len(RECIPE.arms)
    assert (folder / "arms" / "mm_upt" / "images").is_dir()


def test_only_the_supervised_arm_sees_answers(finished):
    """Rows reach the other judges without gold, and without the facts that would give it away."""
    for arm, rows in finished[2].items():
        assert len(rows) == 8 and all(row.images for row in rows)
        if arm == "supervised":
            assert all(row.gold for row in rows)
        else:
            assert all(row.gold is None and not row.extra for row in rows)


def test_arms_share_the_base_the_questions_and_their_order(finished):
    folder, summary, seen = finished
    rows = [[row.id for row in rows] for rows in seen.values()]
    assert all(r == rows[0] for r in rows)
    befores = [figures["before"] for figures in summary["arms"].values()]
    assert all(b == befores[0] for b in befores)
    thresholds = [
        run_dir.read_config(folder / "arms" / arm)["config"]["trainer"]["vote_threshold"]
        for arm in RECIPE.arms
    ]
    assert thresholds == [0.0, 0.0, 0.0, RECIPE.filter_below]


def test_the_tower_stays_unless_it_is_trained(finished, tmp_path, mesh1):
    folder = finished[0]
    _, start = load(RECIPE, mesh1, lambda text: None)

    def moved(path):
        end = checkpoint.load_policy(path, mesh1).params
        return [
            jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), x, y))
            for x, y in ((start.params.vision, end.vision), (start.params.layers, end.layers))
        ]

    tower, layers = moved(folder / "arms" / "random")
    assert not any(tower) and all(layers)
    trained = replace(RECIPE, trainer=replace(RECIPE.trainer, train_vision=True), arms=("random",))
    run(trained, tmp_path / "run")
    tower, layers = moved(tmp_path / "run" / "arms" / "random")
    assert all(tower) and all(layers)
    lines = read_metrics(tmp_path / "run" / "arms" / "random" / "metrics.jsonl")
    kl = [line["kl/ref"] for line in lines[1:]]
    assert all(np.isfinite(kl)) and kl[-1] > 0


def test_a_run_is_resumed_to_the_same_bits(finished, tmp_path, monkeypatch, mesh1):
    recipe = replace(RECIPE, arms=("mm_upt",))
    real = trainer.files.write_samples

    def killed(folder, step, records):
        if step == 2:
            raise KeyboardInterrupt
        return real(folder, step, records)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.files, "write_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run")
    summary = run(recipe, tmp_path / "run", resume=True)
    assert summary["arms"]["mm_upt"] == finished[1]["arms"]["mm_upt"]
    ends = [
        checkpoint.load_policy(p / "arms" / "mm_upt", mesh1).params
        for p in (finished[0], tmp_path / "run")
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.fixture
def writes(monkeypatch):
    """The base writes questions where it is asked for one, as its two steps of training do not teach
    it. dies: that the process is killed then."""
    ask = pictures.tokenizer().encode(pictures.DIRECT)
    question = pictures.tokenizer().encode("count teal?")
    told, real = {"dies": False, "asked": 0}, evaluate.generate

    def generate(params, prompts, row_ids, n, *args, **rest):
        drawn = real(params, prompts, row_ids, n, *args, **rest)
        if list(prompts[0][-len(ask) :]) != ask:
            return drawn
        told["asked"] += len(prompts)
        if told["dies"]:
            raise KeyboardInterrupt
        tokens = np.array(drawn.tokens_RxGxM)
        tokens[:, :, : len(question)] = question
        lengths = np.full_like(drawn.lengths_RxG, len(question))
        return replace(
            drawn, tokens_RxGxM=tokens, lengths_RxG=lengths, stopped_RxG=np.ones_like(lengths, bool)
        )

    monkeypatch.setattr(evaluate, "generate", generate)
    return told


def test_an_arm_trains_on_questions_that_the_base_wrote(
    finished, writes, tmp_path, monkeypatch, mesh1, capsys
):
    """Beside an arm that keeps the task's questions; killed while writing, and while training."""
    recipe = replace(RECIPE, arms=("direct", "random"))
    seen, real, write = [], trainer.make_judge, trainer.files.write_samples

    def spied(name, spec, *args, **options):
        judge, needs_gold = real(name, spec, *args, **options)

        def watched(rows, *rest):
            seen.append((name, spec, list(rows)))
            return judge(rows, *rest)

        return watched, needs_gold

    monkeypatch.setattr(trainer, "make_judge", spied)
    whole = run(recipe, tmp_path / "whole")
    task, _ = load(RECIPE, mesh1, lambda text: None)
    assert [name for name, *_ in seen] == ["majority"] * 2 + ["random"] * 2
    trained = [row for name, _, rows in seen if name == "majority" for row in rows]
    assert all(spec == pictures.ANSWER for _, spec, _ in seen)
    assert {row.prompt for row in trained} == {pictures.SHOWN + "count teal?"}
    assert {row.images for row in trained} <= {row.images for row in task.train}
    assert all(row.gold is None and row.id >= 25 for row in trained)
    assert [row.id for name, _, rows in seen if name == "random" for row in rows] == [
        row.id for row in finished[2]["random"]
    ]
    own = sum(row.prompt == pictures.SHOWN + "count teal?" for row in task.train)
    removed = f"; removed: {own} same_as_source" if own else ""
    said = f"direct: 20 texts from 20 prompts, {20 - own} questions kept{removed}\n"
    assert said in capsys.readouterr().out
    assert whole["arms"]["random"] == finished[1]["arms"]["random"]
    assert whole["arms"]["direct"]["before"] == finished[1]["arms"]["mm_upt"]["before"]

    writes |= {"dies": True, "asked": 0}
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run")
    writes["dies"] = False

    def killed(folder, step, records):
        if step == 2:
            raise KeyboardInterrupt
        return write(folder, step, records)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.files, "write_samples", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run", resume=True)
    assert writes["asked"] == 40
    summary = run(recipe, tmp_path / "run", resume=True)
    assert writes["asked"] == 40 and summary["arms"] == whole["arms"]
    ends = [
        checkpoint.load_policy(tmp_path / p / "arms" / "direct", mesh1).params
        for p in ("run", "whole")
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_training_goes_on_from_an_arm_on_a_data_set_of_pictures(finished, tmp_path):
    """One row with a picture, one with two, one with none, without gold."""
    policy = str(finished[0] / "arms" / "mm_upt")
    files = []
    for i, row in enumerate(pictures.load_task(RECIPE.task, 7).train[:3]):
        files.append(f"{i}.png")
        (tmp_path / files[-1]).write_bytes(row.images[0])
    lines = [
        {"question": "count red?", "images": files[0]},
        {"question": "<image>or<image>area?", "images": files[1:]},
        {"question": "count blue?"},
        {"question": "sum?", "images": files[2:]},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = DataConfig(
        str(tmp_path / "data.jsonl"),
        held_out_fraction=0.0,
        answer_column=None,
        image_column="images",
        chat=True,
        pattern=pictures.ANSWER.pattern,
        equivalence="exact",
    )
    recipe = replace(RECIPE, task=task, policy=CheckpointConfig(policy), arms=("mm_upt",))
    assert run(recipe, tmp_path / "run")["arms"]["mm_upt"]["after"] == {}
    steps = read_metrics(tmp_path / "run" / "arms" / "mm_upt" / "metrics.jsonl")
    assert [line["step"] for line in steps] == [0, 1, 2]


def test_an_area_is_the_policys_unless_the_recipe_names_one(finished, tmp_path, mesh1):
    policy = str(finished[0] / "arms" / "mm_upt")
    (tmp_path / "d.jsonl").write_text('{"question": "sum?"}')
    task = DataConfig(str(tmp_path / "d.jsonl"), held_out_fraction=0.0, answer_column=None)
    recipe = replace(RECIPE, task=task, policy=CheckpointConfig(policy), max_pixels=4096)
    loaded, _ = load(recipe, mesh1, lambda text: None)
    assert (loaded.images.min_pixels, loaded.images.max_pixels) == (48**2, 4096)
    blind = checkpoint.Policy(None, replace(MODEL, vision=None), pictures.tokenizer(), (49,), 0)
    with pytest.raises(UserError, match="reads text only"):
        load_task(RECIPE.task, blind, 0)
    other = pictures.tokenizer()
    other.add_tokens(["!"])
    sees = checkpoint.Policy(None, MODEL, other, (49,), 0, pictures.IMAGES)
    with pytest.raises(UserError, match="tokenizer of its own"):
        load_task(RECIPE.task, sees, 0)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path, home):
    before = sorted(home.rglob("*"))
    small = replace(RECIPE, policy=replace(RECIPE.policy, model=replace(MODEL, vocab_size=8)))
    with pytest.raises(UserError, match=r"vocab_size=8 .* 50 tokens"):
        run(small, tmp_path / "run")
    assert not (tmp_path / "run").exists() and sorted(home.rglob("*")) == before


def test_a_dry_run_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["mm-upt", "quickstart", "--trainer.steps", "7", "--dry-run", "--run-dir", "run"])
    out = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    config = json.loads(out[: out.index("\n}") + 2])
    assert config["trainer"]["steps"] == 7 and config["task"]["kinds"] == list(pictures.KINDS)
    assert "parameters   499,776, of which " in out and "arms         mm_upt, " in out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "mm-upt needs a recipe"),
        (["quick"], "recipe 'quick' is unknown; choose one of quickstart"),
        (["quickstart", "--trainer.grpo.minibatches", "5", "--dry-run"], "multiple of 5"),
        (["quickstart", "--task.hard", "2"], "task.hard=2"),
        (["quickstart", "--resume"], "--resume needs --run-dir"),
    ],
)
def test_mistakes_are_one_message(typed, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["mm-upt", *typed])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert " ".join(said.split()) in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_its_recipes(capsys):
    main(["mm-upt", "--help"])
    assert "qwen2-5-vl-7b-mmr1" in capsys.readouterr().out
    main(["--help"])
    out = capsys.readouterr().out
    assert "selfevolve mm-upt RECIPE" in out and "quickstart, failure" in out
