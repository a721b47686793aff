"""The figure of rounds, read back from its SVG."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.report.rounds import _curves, rounds_figure


def rounds(arm="co_evolution", seed=0, success=(0.25, 0.5), f1=(0.5, 0.75)):
    return [
        {"arm": arm, "seed": seed, "round": i, "agent_success": s, "reward_model_f1": f}
        for i, (s, f) in enumerate(zip(success, f1, strict=True))
    ]


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_mean_and_the_range_over_the_seeds():
    both = rounds() + rounds(seed=1, success=(0.75, 0.5), f1=(math.nan, None))
    (success,) = _curves(both, ["co_evolution"], "agent_success")
    assert success.steps.tolist() == [0, 1] and success.mean.tolist() == [0.5, 0.5]
    assert success.low.tolist() == [0.25, 0.5] and success.high.tolist() == [0.75, 0.5]
    (f1,) = _curves(both, ["co_evolution"], "reward_model_f1")
    assert f1.mean.tolist() == [0.5, 0.75]  # what is no number is a gap, not a zero


def test_arms_keep_their_order_and_rounds_need_none():
    every = rounds("b")[::-1] + rounds("a", success=(None, 0.5))
    first, second = _curves(every, ["b", "a"], "agent_success")
    assert (first.label, second.label) == ("b", "a") and first.mean.tolist() == [0.25, 0.5]
    assert np.isnan(second.mean[0]) and second.mean[1] == 0.5


def test_the_svg_stands_alone_and_names_what_it_shows():
    svg = rounds_figure(rounds() + rounds("frozen_reward_model", success=(0.25, 0.375)))
    shown = texts(svg)
    assert {"Agent success, held-out", "Reward-model F1, held-out"} <= set(shown)
    assert {"co evolution", "frozen reward model", "round"} <= set(shown)
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|<style", svg)
    assert svg == rounds_figure(rounds() + rounds("frozen_reward_model", success=(0.25, 0.375)))


def test_an_arm_without_a_reward_model_has_a_line_where_it_has_a_number():
    shown = texts(rounds_figure(rounds("no_reward_model", f1=(None, None))))
    assert "Agent success, held-out" in shown and "Reward-model F1, held-out" not in shown


@pytest.mark.parametrize("arm", ["_hidden", "$x^2$", "<b>&\x1b[31m", "x" * 99, "", "\ud800"])
def test_any_name_of_an_arm_is_text(arm):
    shown = texts(rounds_figure(rounds(arm)))
    assert not any("\x1b" in (text or "") for text in shown)
    if arm == "$x^2$":
        assert arm in shown
    if arm == "_hidden":
        assert "hidden" in shown


def test_refusals():
    with pytest.raises(UserError, match=r"none of 0 rounds has agent_success or reward_model_f1"):
        rounds_figure([])
    with pytest.raises(UserError, match=r"none of 2 rounds"):
        rounds_figure(rounds(success=(None, math.nan), f1=(None, None)))
    with pytest.raises(UserError, match=r"arm 'co_evolution', seed 0, round 0 is there twice"):
        rounds_figure(rounds() + rounds())
