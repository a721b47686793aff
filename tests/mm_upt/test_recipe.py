"""What a recipe refuses, with the field and its value named; and MM-UPT's settings, as published."""

from dataclasses import replace

import pytest

from configs import mm_upt as recipes
from launch.cli import load_recipe
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.registry import JUDGES
from selfevolve_jax.mm_upt.arms import ARMS, READ_GOLD, trainer_of
from selfevolve_jax.mm_upt.recipe import GRPO, PUBLISHED, BaseConfig, MMUPTRecipe, QuestionsConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig

DATA = DataConfig("x.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("mm_upt", "magic")}, r"arms=mm_upt magic: choose from mm_upt, .*random"),
        ({"arms": ()}, r"arms=: choose from"),
        ({"arms": ("random", "random")}, r"arms=random random: .* twice"),
        ({"seed": -1}, r"seed=-1"),
        ({"filter_below": 0.0}, r"filter_below=0\.0"),
        ({"filter_below": 1.1}, r"filter_below=1\.1"),
        ({"task": DATA}, r"task is a data set.*--policy\.path"),
        (
            {"trainer": replace(PUBLISHED, max_new_tokens=11)},
            r"trainer\.max_new_tokens=11 .* at least 12",
        ),
        ({"policy": BaseConfig(row_tokens=40)}, r"policy\.row_tokens=40 .* take 43.* 43 or more"),
        ({"task": EasyVQAConfig()}, r"policy\.first_kind=220: .*--policy\.first-kind 0"),
        (
            {"task": EasyVQAConfig(), "policy": BaseConfig(first_kind=0, hard=0.5)},
            r"policy\.hard=0\.5: easy-vqa has neither faint",
        ),
        ({"min_pixels": 100}, r"min_pixels=100 resizes"),
        ({"max_pixels": 9}, r"max_pixels=9 resizes"),
        (
            {"arms": ("mm_upt", "direct"), "policy": BaseConfig(asking=0.0)},
            r"arms=mm_upt direct: direct .*policy\.asking=0\.0.*--policy\.asking 0\.15",
        ),
        (
            {"arms": ("in_context",), "policy": CheckpointConfig("x"), "task": DATA},
            r"in_context .*task\.image_column=None.*--task\.image-column",
        ),
    ],
)
def test_bad_recipes_name_the_field_and_the_values(options, message):
    with pytest.raises(UserError, match=message):
        MMUPTRecipe(**options)


def test_a_data_set_may_set_what_pictures_may_not():
    recipe = MMUPTRecipe(
        task=DATA,
        policy=CheckpointConfig("x"),
        min_pixels=100,
        trainer=replace(PUBLISHED, max_new_tokens=11),
    )
    assert recipe.min_pixels == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, r"policy\.noise=1\.5"),
        ({"hard": -0.5}, r"policy\.hard=-0\.5"),
        ({"asking": 2}, r"policy\.asking=2"),
        ({"steps": 0}, r"policy\.steps=0"),
        ({"batch": 0}, r"policy\.batch=0"),
        ({"drawings": 0}, r"policy\.drawings=0"),
        ({"model": replace(BaseConfig().model, vision=None)}, r"policy\.model\.vision must be"),
    ],
)
def test_bad_bases_name_the_field_and_the_values(options, message):
    with pytest.raises(UserError, match=message):
        BaseConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_image": 0}, r"questions\.per_image=0"),
        ({"images": 0}, r"questions\.images=0"),
        ({"max_new_tokens": 0}, r"questions\.max_new_tokens=0"),
        ({"vote_low": 0.9, "vote_high": 0.2}, r"vote_low=0\.9 .*vote_high=0\.2"),
        ({"vote_low": -0.1}, r"vote_low=-0\.1 .*vote_high=None"),
        ({"vote_high": 1.5}, r"vote_low=None .*vote_high=1\.5"),
        ({"per_image": 2, "sampling": Sampling(0.0)}, r"temperature=0 .*per_image=2"),
    ],
)
def test_questions_that_cannot_be_written_name_the_field(options, message):
    with pytest.raises(UserError, match=message):
        QuestionsConfig(**options)


def test_a_bound_of_the_vote_leaves_the_other_side_open():
    assert QuestionsConfig().votes is None
    assert QuestionsConfig(vote_low=0.3).votes == (0.3, 1.0)
    assert QuestionsConfig(vote_high=0.0).votes == (0.0, 0.0)
    assert QuestionsConfig(vote_low=0.3, vote_high=0.9).votes == (0.3, 0.9)


def test_a_base_that_is_not_asked_need_not_write():
    assert MMUPTRecipe(policy=BaseConfig(asking=0.0)).policy.asking == 0
    # One question an image may be the likeliest.
    assert QuestionsConfig(sampling=Sampling(0.0)).per_image == 1


def test_the_published_step():
    """arXiv 2505.22453: the values, written out."""
    assert (GRPO.advantage, GRPO.loss, GRPO.aggregation) == ("grpo", "ppo", "token_mean")
    assert (GRPO.clip_low, GRPO.clip_high, GRPO.dual_clip) == (0.2, 0.3, 3.0)
    assert (GRPO.kl_coef, GRPO.kl_estimator, GRPO.kl_in) == (0.01, "k3", "loss")
    assert GRPO.minibatches == 4 and PUBLISHED.prompts_per_step / GRPO.minibatches == 128
    assert PUBLISHED.samples_per_prompt == 10 and PUBLISHED.train_vision
    assert (PUBLISHED.sampling.temperature, PUBLISHED.sampling.top_p) == (0.7, 0.99)
    adam = PUBLISHED.optimizer
    assert (adam.learning_rate, adam.weight_decay, adam.clip_norm) == (1e-6, 0.01, 1.0)
    assert (adam.b1, adam.b2, adam.schedule) == (0.9, 0.999, "constant")


def test_every_arm_has_a_judge():
    assert {arm.judge for arm in ARMS.values()} <= set(JUDGES)
    assert {n for n, arm in ARMS.items() if arm.judge == "ground_truth"} == set(READ_GOLD)
    own = {n: arm for n, arm in ARMS.items() if arm.questions}
    assert own.keys() == {"direct", "in_context"}
    assert all((arm.judge, arm.questions) == ("majority", n) for n, arm in own.items())


def test_the_filter_is_all_that_an_arm_changes():
    for arm in ARMS:
        changed = trainer_of(arm, PUBLISHED, 0.7)
        assert changed == replace(PUBLISHED, vote_threshold=0.7 if arm == "filter" else 0.0)


def test_every_recipe_of_the_command_line_builds():
    names = [
        n for n, f in vars(recipes).items() if getattr(f, "__module__", "") == recipes.__name__
    ]
    built = {n: load_recipe(n, "configs.mm_upt") for n in names if not n.startswith("_")}
    assert all(isinstance(recipe, MMUPTRecipe) for recipe in built.values())
    assert built["quickstart"].arms == ("mm_upt", "supervised", "direct", "random")
    published = [r for r in built.values() if isinstance(r.task, DataConfig)]
    assert len(published) == 7
    for recipe in published:
        assert recipe.task.image_column == "images" and recipe.task.chat
        assert recipe.task.suffix.endswith("\\boxed{}.") and "\\n" not in recipe.task.suffix
        assert recipe.arms == ("mm_upt",) and recipe.trainer.train_vision
        assert replace(recipe, arms=("direct", "in_context")).questions == QuestionsConfig()
    failure = built["failure"]
    assert failure.task.hard == failure.policy.hard == 1.0
    assert {"mm_upt", "filter"} <= set(failure.arms)
