"""What a recipe refuses, with the field and its value named."""

import pytest

from configs import srt as recipes
from launch.cli import load_recipe
from models.config import ModelConfig
from selfevolve_jax.early_stop import EarlyStop
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.registry import JUDGES
from selfevolve_jax.srt.arms import ARMS
from selfevolve_jax.srt.levels import LevelsRecipe
from selfevolve_jax.srt.recipe import BaseConfig, SRTRecipe
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.trainer import TrainerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("srt", "magic")}, r"arms=srt magic: choose from srt, .*random"),
        ({"arms": ()}, r"arms=: choose from"),
        ({"arms": ("srt", "srt")}, r"arms=srt srt: .* twice"),
        ({"seed": -1}, r"seed=-1"),
        ({"task": DataConfig("x.jsonl")}, r"task is DataConfig.*--policy\.path"),
        (
            {"trainer": TrainerConfig(max_new_tokens=4), "task": ArithmeticConfig(numbers=(2, 5))},
            r"trainer\.max_new_tokens=4 .*task\.numbers=\(2, 5\).* at least 5",
        ),
        (
            {"task": ArithmeticConfig(width=5), "policy": BaseConfig(numbers=(2, 6))},
            r"task\.width=5 .*policy\.numbers=\(2, 6\).* at least 6",
        ),
    ],
)
def test_bad_recipes_name_the_field_and_the_values(options, message):
    with pytest.raises(UserError, match=message):
        SRTRecipe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, r"policy\.noise=1\.5"),
        ({"noise": -0.1}, r"policy\.noise=-0\.1"),
        ({"steps": 0}, r"policy\.steps=0"),
        ({"batch": 0}, r"policy\.batch=0"),
        ({"numbers": (1, 4)}, r"policy\.numbers=\(1, 4\)"),
        ({"numbers": ()}, r"policy\.numbers=\(\)"),
    ],
)
def test_bad_bases_name_the_field_and_the_values(options, message):
    with pytest.raises(UserError, match=message):
        BaseConfig(**options)


def test_a_response_that_just_fits_is_taken():
    SRTRecipe(trainer=TrainerConfig(max_new_tokens=5), task=ArithmeticConfig(numbers=(5,)))


def test_every_arm_has_a_judge():
    assert {arm.judge for arm in ARMS.values()} == set(JUDGES)


def test_every_recipe_of_the_command_line_builds():
    names = [
        n for n, f in vars(recipes).items() if getattr(f, "__module__", "") == recipes.__name__
    ]
    built = [load_recipe(n, "configs.srt") for n in names if not n.startswith("_")]
    assert len(built) >= 2 and all(isinstance(recipe, SRTRecipe | LevelsRecipe) for recipe in built)
    assert load_recipe("quickstart", "configs.srt").arms == ("srt", "random")


@pytest.mark.parametrize("arm", ["ground_truth", "curriculum_pass_rate", "early_stop"])
def test_test_time_training_reads_no_answers(arm):
    with pytest.raises(UserError, match=f"arms={arm} would read their answers"):
        SRTRecipe(test_time=True, arms=("srt", arm))
    with pytest.raises(UserError, match=r"trainer\.early_stop would read"):
        SRTRecipe(test_time=True, trainer=TrainerConfig(early_stop=EarlyStop(patience=1)))


def test_models_mistakes_are_told_too():
    with pytest.raises(ValueError, match="n_kv_heads"):
        ModelConfig(
            vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=3, head_dim=8, d_ff=48
        )
