"""What a recipe refuses, with the field and its value named; and MM-UPT's settings, as published."""

from dataclasses import replace

import pytest

from configs import mm_upt as recipes
from launch.cli import load_recipe
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.registry import JUDGES
from selfevolve_jax.mm_upt.arms import ARMS, READ_GOLD, trainer_of
from selfevolve_jax.mm_upt.recipe import GRPO, PUBLISHED, BaseConfig, MMUPTRecipe
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.pictures import PicturesConfig

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
        ({"task": DATA}, r"task is DataConfig.*--policy\.path"),
        (
            {"trainer": replace(PUBLISHED, max_new_tokens=11)},
            r"trainer\.max_new_tokens=11 .* at least 12",
        ),
        ({"min_pixels": 100}, r"min_pixels=100 resizes"),
        ({"max_pixels": 9}, r"max_pixels=9 resizes"),
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
    assert built["quickstart"].arms[0] == "mm_upt" and "random" in built["quickstart"].arms
    published = [r for r in built.values() if isinstance(r.task, DataConfig)]
    assert len(published) == 6
    for recipe in published:
        assert recipe.task.image_column == "images" and recipe.task.chat
        assert recipe.task.suffix.endswith("\\boxed{}.") and "\\n" not in recipe.task.suffix
        assert recipe.arms == ("mm_upt",) and recipe.trainer.train_vision
    failure = built["failure"]
    assert failure.task == PicturesConfig(hard=1.0) and failure.policy.hard > 0
    assert {"mm_upt", "filter"} <= set(failure.arms)
