"""Reward-model metrics against values worked out by hand."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.ui_genie.reward_metrics import (
    Scored,
    empty,
    figures,
    measure,
    reliability,
    terminate_bias,
)


def rows(*pairs):
    return [Scored(score, bool(label), "click") for score, label in pairs]


def test_figures_by_hand():
    # yes: .9 right, .8 wrong, .6 right; no: .4 right, .1 wrong
    found = figures(rows((0.9, 1), (0.8, 0), (0.6, 1), (0.4, 1), (0.1, 0)), bins=2)
    assert found["n"] == 5 and found["positive"] == 3
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["f1_of_yes"] == pytest.approx(2 * (3 / 5) / (3 / 5 + 1))  # precision 3/5, recall 1
    # of six pairs of a right and a wrong row: .9 > .8, .1; .6 > .1; .4 > .1
    assert found["auc"] == pytest.approx(4 / 6)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["brier"] == pytest.approx((0.01 + 0.64 + 0.16 + 0.36 + 0.01) / 5)
    # [0, .5): .1 and .4, mean .25, half right; [.5, 1]: mean 2.3/3, two of three right
    assert found["ece"] == pytest.approx((2 * 0.25 + 3 * (2.3 / 3 - 2 / 3)) / 5)


def test_precision_and_recall_are_not_mixed_up():
    found = figures(rows((0.9, 1), (0.2, 1), (0.3, 1), (0.1, 0)))
    assert (found["precision"], found["recall"]) == (1.0, pytest.approx(1 / 3))
    assert found["f1"] == pytest.approx(0.5)


def test_scores_that_are_alike_tell_nothing_apart():
    assert figures(rows((0.7, 1), (0.7, 0), (0.7, 0)))["auc"] == 0.5
    assert figures(rows((0.7, 1), (0.7, 0), (0.1, 0)))["auc"] == pytest.approx(0.75)


def test_a_half_is_no_yes():
    assert figures(rows((0.5, 1)))["accuracy"] == 0
    assert figures(rows((0.5, 0)))["accuracy"] == 1


def test_classes_without_rows_say_nothing():
    none = dict.fromkeys(("f1", "precision", "recall", "f1_of_yes", "auc"))
    assert figures([]) == none | {
        "n": 0,
        "positive": 0,
        "accuracy": None,
        "brier": None,
        "ece": None,
    }
    only_wrong = figures(rows((0.2, 0), (0.9, 0)))
    assert (only_wrong["f1"], only_wrong["recall"]) == (None, None)
    assert (only_wrong["precision"], only_wrong["accuracy"]) == (0, 0.5)
    assert only_wrong["auc"] is only_wrong["f1_of_yes"] is None
    assert empty(only_wrong) == "no right rows" and empty(figures([])) == "no rows"
    assert empty(figures(rows((0.2, 1)))) == "no wrong rows"
    never_yes = figures(rows((0.2, 1), (0.3, 0)))
    assert empty(never_yes) is None
    # Rows that are right were there, and none was found: that is a 0.
    assert (never_yes["precision"], never_yes["recall"], never_yes["f1"]) == (None, 0, 0)


def test_reliability_by_hand():
    found = reliability(rows((0.0, 0), (0.05, 1), (0.1, 1), (1.0, 1)), bins=10)
    assert [part["n"] for part in found] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found[0]["score"] == pytest.approx(0.025) and found[0]["right"] == 0.5
    assert found[2]["score"] is None and found[2]["right"] is None
    assert (found[9]["low"], found[9]["high"], found[9]["score"]) == (0.9, 1.0, 1.0)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_properties(pairs):
    made = rows(*pairs)
    found = figures(made)
    assert sum(part["n"] for part in reliability(made)) == found["n"]
    assert 0 <= found["ece"] <= 1 and 0 <= found["brier"] <= 1
    assert figures(made[::-1]) == {k: pytest.approx(v) for k, v in found.items()}
    if found["f1"] and found["precision"]:
        harmonic = 2 / (1 / found["precision"] + 1 / found["recall"])
        assert found["f1"] == pytest.approx(harmonic)
    # The gap of one bin is that of the whole, and finer bins can only show more of it.
    whole = abs(math.fsum(s for s, _ in pairs) - sum(y for _, y in pairs)) / len(pairs)
    assert figures(made, bins=1)["ece"] == pytest.approx(whole)
    assert found["ece"] >= whole - 1e-9


def claim(score, state, label=False):
    return Scored(score, label, "terminate", state=state, claims=True)


def other(score, state, label=False, action="click"):
    return Scored(score, label, action, state=state)


def test_terminate_bias_by_hand():
    found = terminate_bias(
        [
            claim(0.9, "a"),
            other(0.3, "a"),
            other(0.5, "a"),
            other(0.99, "a", label=True),  # a right action is no measure of wrong ones
            claim(0.2, "b"),
            other(0.4, "b", action="terminate"),  # terminate(failure) is one of the others
            claim(0.8, "c"),  # nothing to compare it with
            claim(0.95, "d", label=True),  # the task is done there
            other(0.1, "d"),
        ]
    )
    assert found == {
        "bias": pytest.approx(((0.9 - 0.4) + (0.2 - 0.4)) / 2),
        "compared": 2,
        "believed": pytest.approx(2 / 3),
        "incomplete": 3,
    }


def test_terminate_bias_without_a_state_to_tell_by():
    nothing = {"bias": None, "compared": 0, "believed": None, "incomplete": 0}
    assert terminate_bias([]) == nothing
    assert terminate_bias([other(0.3, "a"), claim(0.9, "b", label=True)]) == nothing


def test_a_constant_terminate_preference_shows():
    """A model that likes every claim has a fine F1 where the claims are right, and is found out."""
    done = [claim(0.99, f"done{i}", label=True) for i in range(10)]
    not_done = [row for i in range(5) for row in (claim(0.99, f"s{i}"), other(0.02, f"s{i}"))]
    found = measure([*done, *not_done])
    assert found["f1"] == pytest.approx(20 / 25)
    assert found["terminate"]["bias"] == pytest.approx(0.97)
    assert found["terminate"]["believed"] == 1


def test_tables():
    made = [
        Scored(0.9, True, "click", "demonstration", "step"),
        Scored(0.8, False, "click", "real_failure", "step"),
        Scored(0.7, True, "terminate", "outcome", "outcome"),
    ]
    found = measure(made)
    assert {k: v["n"] for k, v in found["by_action"].items()} == {"click": 2, "terminate": 1}
    assert found["by_source"]["real_failure"]["f1"] is None
    assert found["by_level"]["outcome"]["f1"] == 1
    assert found["by_action"]["click"] == figures(made[:2])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match="no probability"):
        Scored(score, True, "click")
