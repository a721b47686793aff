"""An arm changes the one thing that it is named after, and keeps what the user has set."""

from dataclasses import fields, replace

import pytest

from selfevolve_jax.early_stop import EarlyStop
from selfevolve_jax.errors import UserError
from selfevolve_jax.srt.arms import ARMS, LabelsConfig
from selfevolve_jax.trainer_config import TrainerConfig

CONFIG = TrainerConfig(samples_per_prompt=16, shared_prompt=16)


def changed(arm, config=CONFIG):
    new = ARMS[arm].change(config)
    return {
        f.name: getattr(new, f.name)
        for f in fields(config)
        if getattr(new, f.name) != getattr(config, f.name)
    }


@pytest.mark.parametrize(
    ("arm", "wanted"),
    [
        ("srt", {}),
        ("offline", {}),
        ("early_stop", {"early_stop": EarlyStop(patience=3)}),
        ("rollback", {"alarm": "rollback"}),
        ("filter", {"vote_threshold": 0.6, "resample": 4}),
        ("teacher", {"teacher_decay": 0.99}),
        ("n16", {}),
        ("n4", {"samples_per_prompt": 4, "shared_prompt": 4}),
    ],
)
def test_what_an_arm_changes(arm, wanted):
    assert changed(arm) == wanted


def test_what_the_user_set_stays():
    mine = replace(
        CONFIG,
        early_stop=EarlyStop(patience=7, min_delta=0.01),
        vote_threshold=0.3,
        resample=1,
        teacher_decay=0.5,
    )
    for arm in ("early_stop", "filter", "teacher"):
        assert changed(arm, mine) == {}


@pytest.mark.parametrize(("shared", "n", "wanted"), [(1, 8, 1), (4, 8, 4), (8, 4, 4), (16, 32, 32)])
def test_another_number_of_samples_still_shares_what_it_can(shared, n, wanted):
    assert ARMS[f"n{n}"].change(replace(CONFIG, shared_prompt=shared)).shared_prompt == wanted


def test_bad_labels_name_the_field_and_the_value():
    with pytest.raises(UserError, match=r"labels\.samples=0"):
        LabelsConfig(samples=0)
    with pytest.raises(UserError, match=r"labels\.fraction=1\.5"):
        LabelsConfig(fraction=1.5)
