"""The alarm's rule on made histories: what raises it, what must not, and when."""

import json
import math

import pytest

from selfevolve_jax import alarm

ROWS = 512
HEALTHY = {
    "response/length_ended": 10.0,
    "response/length_spread": 1.0,
    "response/distinct": 1.0,
    "judge/answer_entropy": 2.0,
    "judge/majority_fraction": 0.5,
    "policy/entropy": 0.4,
    "kl/ref": 0.02,
    "kl/ref_nll": 0.5,
}


def history(**changes):
    """20 steps that are HEALTHY at first; a change is a function of the step from 7 on."""
    return [
        HEALTHY
        | {k.replace("__", "/"): f(step) for k, f in changes.items() if step > 6}
        | {"step": step}
        for step in range(1, 21)
    ]


def fires_at(steps):
    return next((i for i in range(1, len(steps) + 1) if alarm.read(steps[:i], ROWS).fired), None)


def test_learning_raises_nothing():
    """Rising agreement, falling entropy, longer responses: what ground truth does too."""
    steps = history(
        judge__majority_fraction=lambda s: min(1.0, 0.5 + 0.04 * (s - 6)),
        policy__entropy=lambda s: 0.4 * 0.8 ** (s - 6),
        response__length_ended=lambda s: 10.0 + s,
        kl__ref=lambda s: 0.02 * s,
        kl__ref_nll=lambda s: 0.5 * 0.9 ** (s - 6),
    )
    assert [alarm.read(steps[:i], ROWS) for i in range(21)] == [alarm.Reading()] * 21


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("response__length_ended", 8.0, "became shorter, from 10.0 to 8.0"),
        ("response__distinct", 0.85, "fell from 1.00 to 0.85"),
        ("judge__answer_entropy", 1.5, "entropy fell from 2.00 to 1.50"),
        ("kl__ref", 1.5, r"KL to the base is 1.50"),
        ("kl__ref_nll", 0.8, "foreign to the base, from 0.50 to 0.80"),
    ],
)
def test_each_sign_alone_fires_once_it_fills_the_window_and_holds(name, value, words):
    steps = history(**{name: lambda s: value})
    first = next(i for i in range(21) if alarm.read(steps[:i], ROWS).signs)
    assert 7 <= first <= 9 and fires_at(steps) == first + alarm.HOLD - 1
    assert words in "; ".join(alarm.read(steps, ROWS).signs)
    assert len(alarm.read(steps, ROWS).signs) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response__length_ended", 8.5),  # 1.5 standard deviations
        ("response__distinct", 0.92),
        ("judge__answer_entropy", 1.7),
        ("kl__ref", 0.9),
        ("kl__ref_nll", 0.59),  # less than a fifth
    ],
)
def test_under_its_threshold_no_sign_shows(name, value):
    assert fires_at(history(**{name: lambda s: value})) is None


def test_one_odd_step_raises_nothing():
    assert fires_at(history(response__distinct=lambda s: 0.75 if s == 12 else 1.0)) is None
    assert fires_at(history(judge__answer_entropy=lambda s: 1.2 if s == 12 else 2.0)) is None


def test_foreign_is_measured_from_the_lowest_and_not_from_the_base():
    """Down from 0.5 to 0.2 and back to 0.35: still likelier to the base than its own samples were."""
    back = history(kl__ref_nll=lambda s: 0.2 if s < 15 else 0.35)
    assert fires_at(back) is not None
    small = history(kl__ref_nll=lambda s: 0.02 if s < 15 else 0.06)  # threefold, but 0.04 nats
    assert fires_at(small) is None


@pytest.mark.parametrize(
    ("name", "high", "low"), [("response__distinct", 1.0, 0.8), ("judge__answer_entropy", 2.3, 1.6)]
)
def test_what_chance_explains_is_no_sign(name, high, low):
    """Three low steps in a row among steps that swing as widely anyway, as with few prompts a step;
    the same three after steady ones are a fall."""
    swing = [high if step % 2 else low for step in range(21)]
    fell = {16, 17, 18}
    noisy = [
        HEALTHY | {name.replace("__", "/"): low if step in fell else swing[step]}
        for step in range(1, 21)
    ]
    assert fires_at(noisy) is None
    steady = history(**{name: lambda s: low if s > 15 else high})
    steady = [s | {name.replace("__", "/"): high} if s["step"] < 7 else s for s in steady]
    assert fires_at(steady) is not None


def test_rows_that_meet_by_chance_are_no_sign_where_there_are_few():
    """A pair, two pairs, three of a kind among 16 rows, after sixty steps without any; a ground-truth
    arm has had nearly as many. Of 512 rows the same shares are a fall."""
    shares = [1.0] * 60 + [0.875, 0.75, 0.8125, 0.8125]
    steps = [HEALTHY | {"response/distinct": share} for share in shares]

    def fires(rows):
        return any(alarm.read(steps[:i], rows).fired for i in range(len(steps) + 1))

    assert not fires(16) and fires(512)


def test_noise_counts_under_agreement_only():
    noisy = {"policy__entropy": lambda s: 0.8}
    assert fires_at(history(**noisy)) is None
    agreed = history(**noisy, judge__majority_fraction=lambda s: 0.97)
    assert fires_at(agreed) is not None
    # near zero, a change of some thousandths is no noise
    quiet = history(
        policy__entropy=lambda s: 0.003 if s < 14 else 0.01,
        judge__majority_fraction=lambda s: 1.0,
    )
    assert fires_at(quiet) is None


def test_a_narrow_spread_counts_as_two_percent_of_the_length():
    fixed = [step | {"response/length_spread": 0.0} for step in history()]
    shorter = [s | {"response/length_ended": 9.7} if s["step"] > 6 else s for s in fixed]
    assert fires_at(shorter) is None
    shorter = [s | {"response/length_ended": 9.6} if s["step"] > 6 else s for s in fixed]
    assert fires_at(shorter) is not None


def test_it_only_looks_back_and_forgets_nothing_by_way_of_the_log():
    """The reading of a step is the same from what is logged, nulls and all, as from memory."""
    steps = history(response__distinct=lambda s: 0.9 - 0.01 * s, kl__ref=lambda s: math.nan)
    for i in range(21):
        lines = [json.loads(json.dumps({k: _null(v) for k, v in s.items()})) for s in steps[:i]]
        assert alarm.read([alarm.signals(line) for line in lines], ROWS) == alarm.read(
            steps[:i], ROWS
        )


def _null(value):
    return None if math.isnan(value) else value


def test_gold_is_not_read():
    labels = {"reward/gold", "judge/label_accuracy", "eval/mean", "reward/mean"}
    assert not labels & set(alarm.SIGNALS)
    assert alarm.signals({"reward/gold": 0.0, "policy/entropy": None}).keys() == {"policy/entropy"}


def test_a_missing_metric_is_no_sign():
    for name in alarm.SIGNALS:
        steps = [{k: v for k, v in step.items() if k != name} for step in history()]
        assert fires_at(steps) is None


def test_the_warning_says_what_was_seen_and_what_follows():
    reading = alarm.read(history(response__distinct=lambda s: 0.5), ROWS)
    text = alarm.warning(20, reading, "rollback")
    assert "step 20" in text and "fell from 1.00 to 0.50" in text and "goes back" in text
    assert "trainer.alarm=stop" in alarm.warning(20, reading, "warn")
