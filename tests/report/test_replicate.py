"""Replications written by hand: every figure in the verdicts is worked out beside it."""

import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from selfevolve_jax import run_dir
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.report import replicate, replication_figures
from selfevolve_jax.report.replication import ARMS, Series, numbers
from selfevolve_jax.report.replication_story import ending, fired, halved, lost, start, story, until

ROOT = Path(run_dir.__file__).parents[1]
VOID = {"meta", "br"}

# Held-out means at steps 0, 10, 20, 30, 40. The paper's story, in exact binary fractions.
COLLAPSE = [0.5, 0.75, 1.0, 0.75, 0.25]
STORY = {
    "srt": COLLAPSE,  # gain .5, halved at step 30
    "ground_truth": [0.5, 0.75, 0.875, 1.0, 1.0],
    "random": [0.5, 0.5, 0.4375, 0.375, 0.375],
    "early_stop": [0.5, 0.75, 1.0, 0.96875, 0.9375],
    "offline": [0.5, 0.75, 1.0, 0.984375, 0.984375],
    "curriculum_pass_rate": [0.5, 1.0, 1.0, 1.0, 1.0],
    "curriculum_majority": [0.5, 1.0, 1.0, 0.9375, 0.9375],
    "filter": [0.5, 0.75, 1.0, 1.0, 0.875],
    "n4": [0.5, 0.75, 1.0, 1.0, 1.0],
    "n8": [0.5, 0.75, 1.0, 1.0, 0.75],
    "n32": [0.5, 1.0, 0.75, 0.5, 0.25],
}
STOPPED = {"why": "early_stop", "step": 40, "restored": 20}
# What a training step logs: at steps 1 to 20, and at steps 21 to 40.
SIGNALS = {
    "srt": {
        "reward/mean": (0.5, 1.0),
        "judge/label_accuracy": (0.875, 0.25),
        "kl/ref": (0.25, 2.0),
        "policy/entropy": (0.5, 0.125),
        "alarm/fired": (0.0, 1.0),
    },
    "ground_truth": {
        "reward/mean": (0.5, 1.0),
        "judge/label_accuracy": (1.0, 1.0),
        "kl/ref": (0.25, 0.5),
        "policy/entropy": (0.5, 0.25),
        "alarm/fired": (0.0, 0.0),
    },
}
ROWS = {
    "rises": 0,
    "collapses": 1,
    "reward": 2,
    "labels": 3,
    "kl": 4,
    "entropy": 5,
    "truth": 6,
    "early_stop": 7,
    "offline": 8,
    "pass_rate": 9,
    "majority": 10,
    "filter": 11,
    "samples": 12,
    "random": 13,
    "alarm": 14,
    "no_alarm": 15,
}


def make(path, by_seed=None, signals=None, config=None, seeds=5, unfinished=()):
    """A replication on disk. by_seed: seed -> {arm: held-out means at 0, 10, …}, over STORY; None
    leaves a seed or an arm out. signals: seed -> {arm: {metric: (steps 1-20, steps 21-40)}}, over
    SIGNALS. unfinished: (seed, arm) without a summary."""
    run = run_dir.create(
        str(path), {"seed": 0, "seeds": seeds, "arms": list(ARMS)} | (config or {}), resume=False
    )
    first = (config or {}).get("seed", 0)
    for seed in range(first, first + seeds):
        changed = (by_seed or {}).get(seed, {})
        if changed is None:
            continue
        arms = {k: v for k, v in ({**STORY, **changed}).items() if v is not None}
        told = {}
        for arm, means in arms.items():
            logged = {**SIGNALS.get(arm, {}), **(signals or {}).get(seed, {}).get(arm, {})}
            write_arm(run / f"seed{seed}" / "arms" / arm, means, logged)
            if (seed, arm) in unfinished:
                continue
            stop = STOPPED if arm == "early_stop" else None
            after = means[stop["restored"] // 10] if stop else means[-1]
            told[arm] = {
                "before": {"mean": means[0], "majority": 0.75, "greedy": 1.0},
                "after": {"mean": after, "majority": 0.25, "greedy": 0.5},
                "best": {"step": 10, "mean": max(means[1:], default=0)},
                **({"ended": stop} if stop else {}),
            }
        run_dir.write_summary(run / f"seed{seed}", {"arms": told, "seconds": 60.0})
    return run


def write_arm(folder, means, logged):
    lines = []
    for step in range(10 * (len(means) - 1) + 1):
        line = {"step": step}
        if step:
            line |= {name: values[step > 20] for name, values in logged.items()}
        if step % 10 == 0:
            line |= {"eval/mean": means[step // 10], "eval/greedy": 0.5}
        lines.append(json.dumps(line) + "\n")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(lines))


def rows_of(run):
    rows = replicate.verdicts(replicate.collect(run))
    assert len(rows) == len(ROWS)
    return {name: rows[i] for name, i in ROWS.items()}


class Page(HTMLParser):
    """Tags that pair, ids, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The paper's story on five seeds."""
    return make(tmp_path_factory.mktemp("paper") / "run")


@pytest.fixture(scope="module")
def drawn(paper):
    return replicate.figures(replicate.collect(paper))


@pytest.fixture
def cheap(monkeypatch):
    """One small picture: for tests of what is round it."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    monkeypatch.setattr(replicate, "figures", lambda data: {"accuracy": svg})


# -- reading


def test_collect_stacks_seeds_and_leaves_gaps(tmp_path):
    run = make(
        tmp_path / "r",
        {1: {"srt": [0.5, 0.625], "n8": None}, 2: None},
        {0: {"srt": {"kl/ref": (None, 2.0)}}},
        seeds=3,
        unfinished={(1, "srt")},
    )
    data = replicate.collect(run)
    assert data.seeds == (0, 1, 2) and data.arms == ARMS and data.seconds == 120.0
    means = data.curves["srt"]["eval/mean"]
    np.testing.assert_array_equal(means.steps, [0, 10, 20, 30, 40])
    nan = np.nan
    np.testing.assert_array_equal(means.values, [COLLAPSE, [0.5, 0.625, nan, nan, nan], [nan] * 5])
    kl = data.curves["srt"]["kl/ref"]  # a null is a gap, and no line of step 0 has it
    np.testing.assert_array_equal(kl.steps, range(1, 41))
    np.testing.assert_array_equal(
        kl.values[:, [0, 19, 20]], [[nan, nan, 2], [0.25, nan, nan], [nan] * 3]
    )
    np.testing.assert_array_equal(data.after["srt"]["mean"], [0.25, nan, nan])
    assert data.ended["early_stop"] == (STOPPED, STOPPED, None)
    assert data.ended["srt"] == (None, None, None)
    assert data.missing == (
        "seed 2: nothing yet",
        "srt: not ended on seed 1, so drawn but not judged",
        "n8: not run on seed 1",
    )


def test_seeds_count_from_the_configs_and_arms_beyond_the_plan_are_kept(tmp_path):
    run = make(tmp_path / "r", {7: {"teacher": COLLAPSE}}, config={"seed": 7}, seeds=2)
    data = replicate.collect(run)
    assert data.seeds == (7, 8) and data.arms == (*ARMS, "teacher")
    assert data.missing == ("teacher: not run on seed 8",)
    figure = replication_figures._every_arm(data)
    assert figure is not None and "teacher" in [axes.get_title("left") for axes in figure.axes]


def test_a_quick_run_is_of_one_seed(tmp_path):
    run = make(tmp_path / "r", config={"quick": True, "seeds": 5}, seeds=1)
    data = replicate.collect(run)
    assert data.seeds == (0,) and data.missing == ()
    assert "at least 1 of 1 seeds" in replicate.verdicts(data)[0].claim


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([3], "seed 3"),
        ([0, 1, 2], "seeds 0 to 2"),
        ([0, 1], "seeds 0, 1"),
        ([0, 2, 3], "seeds 0, 2, 3"),
    ],
)
def test_numbers(seeds, said):
    assert numbers(seeds) == said


def test_a_torn_last_line_is_no_damage(tmp_path):
    run = make(tmp_path / "r", seeds=1)
    with open(run / "seed0/arms/srt/metrics.jsonl", "a") as file:
        file.write('{"step": 41, "eval/me')
    assert replicate.collect(run).curves["srt"]["eval/mean"].steps[-1] == 40


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", "{", r"config\.json cannot be read"),
        (
            "config.json",
            '{"config": {"seeds": "5"}}',
            r"config\.json is not of a replication: .*'5'",
        ),
        ("config.json", '{"config": {"seeds": 0}}', r"config\.json is not of a replication"),
        ("config.json", '{"config": {"arms": 3}}', r"config\.json is not of a replication"),
        ("seed0/summary.json", "{", r"seed0/summary\.json cannot be read"),
        ("seed0/summary.json", '{"arms": {"srt": 3}}', r"seed0/summary\.json is damaged"),
        (
            "seed0/summary.json",
            '{"arms": {"srt": {"before": {}, "after": {}, "ended": {"why": "alarm"}}}}',
            r'seed0/summary\.json is damaged: "ended"',
        ),
        ("seed0/arms/n4/metrics.jsonl", "x\n", r"seed0/arms/n4/metrics\.jsonl line 1 is damaged"),
    ],
)
def test_damaged_inputs_are_named_and_the_old_report_stays(tmp_path, name, text, says):
    run = make(tmp_path / "r", seeds=1)
    (run / "report.html").write_text("old")
    (run / name).write_text(text)
    with pytest.raises(UserError, match=says):
        replicate.write(run)
    assert (run / "report.html").read_text() == "old"


def test_what_is_no_replication(tmp_path):
    with pytest.raises(UserError, match="absent is not a run directory"):
        replicate.collect(tmp_path / "absent")
    run = make(tmp_path / "r", {0: None, 1: None}, seeds=2)
    with pytest.raises(UserError, match="nothing is logged in"):
        replicate.collect(run)


# -- the definitions, by hand


def test_the_story_of_an_arm(paper):
    data = replicate.collect(paper)
    s = story(data, "srt")
    assert s is not None
    assert (s.base[0], s.peak[0], s.peak_step[0], s.final[0], s.gain[0]) == (
        0.5,
        1.0,
        20,
        0.25,
        0.5,
    )
    assert s.ended.all() and s.collapsed.all() and s.lost_gain.all()
    s = story(data, "early_stop")  # what it gave back is step 20's policy, not step 40's
    assert s is not None and (s.final == 1.0).all() and not s.collapsed.any()
    assert story(data, "absent") is None


@pytest.mark.parametrize(
    ("means", "collapsed", "lost_gain"),
    [
        ([0.5, 1.0, 0.75], True, True),  # exactly half of the gain
        ([0.5, 1.0, 0.765625], False, False),
        ([0.4, 0.8, 0.6], True, True),  # exactly half, but not in floats
        ([0.5, 0.25, 0.125], True, False),  # sank from the start
        ([0.5, 0.5, 0.5], True, False),
        ([0.5, 0.625], False, False),
    ],
)
def test_collapsed(tmp_path, means, collapsed, lost_gain):
    s = story(replicate.collect(make(tmp_path / "r", {0: {"srt": means}}, seeds=1)), "srt")
    assert s is not None
    assert (s.collapsed[0], s.lost_gain[0]) == (collapsed, lost_gain)


def test_when_the_gain_is_halved_and_when_a_little_is_lost(tmp_path):
    means = {
        0: [0.5, 0.6, 0.5, 1.0, 0.75],  # a dip before the peak is no loss; half is gone at 40
        1: [0.5, 1.0, 0.9375, 0.875, 0.8125],  # never halved; .05 lost at 20
        2: [0.5, 0.25, 0.125, 0.125, 0.125],  # never gained; lost from the base at 10
        3: [0.5, 0.625, 0.75, 0.875, 1.0],
    }
    run = make(
        tmp_path / "r", {s: {"srt": m} for s, m in means.items()}, seeds=5, unfinished={(4, "srt")}
    )
    data = replicate.collect(run)
    np.testing.assert_array_equal(halved(data, "srt"), [40, np.inf, np.nan, np.inf, np.nan])
    np.testing.assert_array_equal(lost(data, "srt", 0.05)[:4], [40, 20, 10, np.inf])
    np.testing.assert_array_equal(fired(data, "srt"), [21] * 5)
    assert fired(data, "n4") is None and halved(data, "absent") is None


def test_means_of_five_steps():
    steps = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    row = [100.0, 1, 2, np.nan, 4, 5, 6, 7, 8]
    series = Series(steps, np.array([row, [np.nan] * 9]))
    np.testing.assert_array_equal(start(series), [(1 + 2 + 4 + 5 + 6) / 5, np.nan])
    np.testing.assert_array_equal(ending(series), [6, np.nan])
    np.testing.assert_array_equal(until(series, np.array([5, 8])), [(1 + 2 + 4 + 5) / 4, np.nan])
    np.testing.assert_array_equal(
        until(series, np.array([7, 8])), [(2 + 4 + 5 + 6 + 7) / 5, np.nan]
    )


# -- the verdicts


def test_the_papers_story_is_agreed_to(paper):
    rows = rows_of(paper)
    agreed = {name: row.agrees for name, row in rows.items()}
    assert agreed == dict.fromkeys(ROWS, "yes") | {"entropy": "no"}
    assert "gain +0.500, +0.500, +0.500, +0.500, +0.500: holds in 5 of 5" in rows["rises"].seen
    assert "peak 1.000, 1.000" in rows["collapses"].seen and "final 0.250" in rows["collapses"].seen
    assert "reward 0.500, 0.500, 0.500, 0.500, 0.500 → 1.000" in rows["reward"].seen
    assert "at accuracy's peak 0.875" in rows["labels"].seen and "end 0.250" in rows["labels"].seen
    assert "at accuracy's peak 0.250" in rows["kl"].seen and "end 2.000" in rows["kl"].seen
    assert "(ground truth's end: 0.500, " in rows["kl"].seen
    assert "from start to end it falls in 5 of 5. Unlike the paper's" in rows["entropy"].seen
    assert "ended at step 40 (back to 20), 40 (back to 20)" in rows["early_stop"].seen
    assert rows["samples"].seen == (
        "step at which half of the gain is first seen lost, "
        "n = 4: never, never, never, never, never (median never); "
        "n = 8: 40, 40, 40, 40, 40 (median 40); "
        "n = 16: 30, 30, 30, 30, 30 (median 30); "
        "n = 32: 20, 20, 20, 20, 20 (median 20)"
    )
    assert (
        "fires at step 21, 21, 21, 21, 21; 0.05 is first seen lost at step 30" in rows["alarm"].seen
    )
    assert "fires at step never, never" in rows["no_alarm"].seen
    assert "≈.65 → .98" in rows["reward"].paper and "≈.05 → 1.9" in rows["kl"].paper
    assert "at least 4 of 5 seeds" in rows["collapses"].claim


CONTRARY = {
    "srt": [0.5, 0.5625, 0.5625, 0.5625, 0.5625],  # rises by .0625 < .08 and stays
    "ground_truth": [0.5, 1.0, 0.75, 0.5, 0.25],
    "random": [0.5, 0.53125, 0.53125, 0.53125, 0.53125],  # .03125 >= .03
    "early_stop": [0.5, 0.75, 0.9375, 0.96875, 1.0],  # gives back step 20: .0625 under the peak
    "offline": [0.5, 1.0, 0.96875, 0.96875, 0.96875],  # .03125 under it
    "curriculum_pass_rate": [0.5, 0.546875, 0.5, 0.5, 0.5],  # lower than SRT's, and back
    "curriculum_majority": [0.5, 1.0, 1.0, 0.984375, 0.984375],  # falls by less than .03
    "filter": COLLAPSE,
    "n4": [0.5, 1.0, 0.5, 0.5, 0.5],
    "n8": [0.5, 1.0, 1.0, 0.5, 0.5],
    "n32": [0.5, 1.0, 1.0, 1.0, 1.0],
}


def test_data_that_contradict_the_paper_get_their_no(tmp_path):
    alarms = {"ground_truth": {"alarm/fired": (0.0, 1.0)}}
    run = make(
        *(tmp_path / "r", dict.fromkeys(range(5), CONTRARY), dict.fromkeys(range(5), alarms))
    )
    rows = rows_of(run)
    agreed = {name: row.agrees for name, row in rows.items()}
    # SRT never loses .05, so the alarm had nothing to warn of
    assert agreed == dict.fromkeys(ROWS, "no") | {"alarm": "not run"}
    assert "gain +0.062, " in rows["rises"].seen and "holds in 0 of 5" in rows["rises"].seen
    assert "no seed collapses after a rise" in rows["labels"].seen
    assert "no collapse in 0 of 5" in rows["truth"].seen
    assert "n = 4: 20, " in rows["samples"].seen and "n = 16: never, " in rows["samples"].seen
    assert "nothing to warn of" in rows["alarm"].seen
    assert "fires at step 21" in rows["no_alarm"].seen


def test_an_arm_that_only_sinks_did_not_rise_and_collapse(tmp_path):
    means = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    sinks = {"srt": means, "filter": means, "curriculum_majority": means}
    rows = rows_of(make(tmp_path / "r", dict.fromkeys(range(5), sinks)))
    assert rows["rises"].agrees == rows["collapses"].agrees == rows["labels"].agrees == "no"
    assert "5 never rose above the base" in rows["collapses"].seen
    assert rows["majority"].agrees == "no"  # a fall from a peak needs a peak
    assert rows["filter"].agrees == "no"  # to have nothing to lose is not to hold
    assert rows["alarm"].agrees == "no"  # .05 was gone at step 10, the alarm came at 21


@pytest.mark.parametrize(
    ("collapsing", "agrees"), [(5, "yes"), (4, "yes"), (3, "partly"), (0, "no")]
)
def test_four_seeds_of_five(tmp_path, collapsing, agrees):
    stays = {"srt": [0.5, 0.75, 1.0, 1.0, 1.0]}
    run = make(tmp_path / "r", dict.fromkeys(range(collapsing, 5), stays))
    rows = rows_of(run)
    assert rows["collapses"].agrees == agrees
    assert f"holds in {collapsing} of 5" in rows["collapses"].seen
    if collapsing:  # the signs are looked for in the seeds that collapse
        assert f"holds in {collapsing} of {collapsing}" in rows["labels"].seen
        assert rows["labels"].agrees == rows["kl"].agrees == "yes"


@pytest.mark.parametrize(
    ("row", "arm", "means"),
    [
        ("truth", "ground_truth", [0.5, 1.0, 1.0, 1.0, 0.875]),  # no collapse, but .125 lost
        ("early_stop", "early_stop", [0.5, 0.75, 0.9375, 0.96875, 1.0]),
        ("offline", "offline", COLLAPSE),
        ("pass_rate", "curriculum_pass_rate", COLLAPSE),
        ("filter", "filter", COLLAPSE),
        ("random", "random", [0.5, 0.5625, 0.5, 0.5, 0.5]),
    ],
)
def test_what_each_seed_must_do_one_seed_can_spoil(tmp_path, row, arm, means):
    rows = rows_of(make(tmp_path / "r", {3: {arm: means}}))
    assert rows[row].agrees == "partly" and "holds in 4 of 5" in rows[row].seen
    assert [name for name in ROWS if rows[name].agrees != "yes"] == sorted(
        {row, "entropy"}, key=list(ROWS).index
    )


def test_ground_truth_without_a_collapse_that_ends_below_its_peak_agrees_in_part(tmp_path):
    sags = {"ground_truth": [0.5, 1.0, 1.0, 1.0, 0.9375]}
    rows = rows_of(make(tmp_path / "r", dict.fromkeys(range(5), sags)))
    assert rows["truth"].agrees == "partly" and "no collapse in 5 of 5" in rows["truth"].seen


def test_to_stay_at_the_base_is_no_cure(tmp_path):
    stays = {"offline": [0.5, 0.5625, 0.5625, 0.5625, 0.5625]}
    rows = rows_of(make(tmp_path / "r", dict.fromkeys(range(5), stays)))
    assert rows["offline"].agrees == "partly"
    assert rows["offline"].seen.endswith("but the median gain is only +0.062")


@pytest.mark.parametrize(
    ("n4", "n8", "agrees"),
    [
        (40, 30, "yes"),  # srt 30, n32 20
        (40, 20, "partly"),  # later at the ends, not in between
        (20, 20, "no"),  # as early as n = 32
        (None, 40, "partly"),  # n = 4 is missing
    ],
)
def test_the_order_of_collapses_over_n(tmp_path, n4, n8, agrees):
    def halved_at(step):
        return [0.5, 1.0, *(1.0 if 10 * i < step else 0.5 for i in range(2, 5))]

    changed = {"n4": n4 and halved_at(n4), "n8": halved_at(n8)}
    row = rows_of(make(tmp_path / "r", dict.fromkeys(range(3), changed), seeds=3))["samples"]
    assert row.agrees == agrees
    assert ("without a gain: n = 4" in row.seen) == (n4 is None)


def test_an_alarm_in_the_same_step_is_not_before(tmp_path):
    late = {0: {"srt": {"alarm/fired": (0.0, 0.0)}}}
    early = {"srt": [0.5, 1.0, 1.0, 0.75, 0.25]}
    run = make(tmp_path / "a", {0: early}, late, seeds=1)
    row = rows_of(run)["alarm"]
    assert (
        row.agrees == "no" and "fires at step never; 0.05 is first seen lost at step 30" in row.seen
    )
    lines = (run / "seed0/arms/srt/metrics.jsonl").read_text().splitlines()
    for fires, agrees in ((30, "no"), (29, "yes")):
        changed = [json.loads(line) for line in lines]
        changed = [m | {"alarm/fired": float(m["step"] >= fires)} for m in changed]
        text = "".join(json.dumps(m) + "\n" for m in changed)
        (run / "seed0/arms/srt/metrics.jsonl").write_text(text)
        assert rows_of(run)["alarm"].agrees == agrees


@pytest.mark.parametrize(
    ("row", "metric", "values", "agrees"),
    [
        ("reward", "reward/mean", (0.5, 0.9375), "no"),  # under .95
        ("reward", "reward/mean", (0.5, 0.953125), "yes"),
        ("labels", "judge/label_accuracy", (0.5, 0.46875), "no"),  # by less than .05
        ("labels", "judge/label_accuracy", (0.5, 0.4375), "yes"),
        ("kl", "kl/ref", (0.25, 0.4375), "no"),  # by less than twice
        ("kl", "kl/ref", (0.25, 0.5), "yes"),
        ("entropy", "policy/entropy", (0.125, 0.125), "no"),
        ("entropy", "policy/entropy", (0.125, 0.25), "yes"),
    ],
)
def test_signs_that_do_not_go_with_the_collapse(tmp_path, row, metric, values, agrees):
    """Accuracy is at its peak at step 20, the last of the first half."""
    rows = rows_of(make(tmp_path / "r", None, {0: {"srt": {metric: values}}}, seeds=1))
    assert rows["collapses"].agrees == "yes" and rows[row].agrees == agrees
    assert ("Unlike the paper's" in rows["entropy"].seen) == (row != "entropy")


def test_one_false_alarm_spoils_never(tmp_path):
    row = rows_of(make(tmp_path / "r", None, {2: {"ground_truth": {"alarm/fired": (0.0, 1.0)}}}))[
        "no_alarm"
    ]
    assert row.agrees == "no" and "holds in 4 of 5" in row.seen


def test_what_is_not_logged_is_not_run(tmp_path):
    nothing = {"kl/ref": (None, None), "alarm/fired": (None, None), "policy/entropy": (None, None)}
    signals = {0: {"srt": nothing, "ground_truth": nothing}}
    rows = rows_of(make(tmp_path / "r", None, signals, seeds=1))
    for name in ("kl", "entropy", "alarm", "no_alarm"):
        assert rows[name].agrees == "not run" and "is not logged" in rows[name].seen


def test_a_run_in_progress_is_reported_and_only_what_ended_is_judged(tmp_path, monkeypatch):
    gone = dict.fromkeys(("filter", "n4", "n8", "n32", "random"))
    running = {**gone, "srt": [0.5, 0.75, 1.0]}  # seed 1 is at its peak: it has not held it
    run = make(
        *(tmp_path / "r", {0: gone, 1: running, 2: None, 3: None, 4: None}),
        unfinished={(1, "srt")},
    )
    rows = rows_of(run)
    assert rows["collapses"].agrees == "yes" and "holds in 1 of 1" in rows["collapses"].seen
    assert "final 0.250, –, –, –, –" in rows["collapses"].seen
    assert rows["collapses"].seen.endswith("not ended: seeds 1 to 4")
    assert "holds in 2 of 2" in rows["offline"].seen
    for name in ("filter", "samples", "random"):
        assert rows[name].agrees == "not run"
    drawn = replicate.figures(replicate.collect(run))
    assert "samples" not in drawn and "cures" in drawn
    monkeypatch.setattr(replicate, "figures", lambda data: drawn)
    page = Page(replicate.write(run).read_text())
    assert "seeds 2 to 4: nothing yet" in page.text and "filter: not run on seeds 0, 1" in page.text
    assert "srt: not ended on seed 1, so drawn but not judged" in page.text


def test_without_srt_a_curriculum_has_nothing_to_be_held_against(tmp_path):
    rows = rows_of(make(tmp_path / "r", {0: {"srt": None}}, seeds=1))
    assert (
        rows["pass_rate"].agrees == "not run" and "no seed has ended srt" in rows["pass_rate"].seen
    )
    assert rows["rises"].seen == "no seed has ended the arm srt"


# -- figures


def test_figures_are_sound_files_with_labelled_axes(drawn):
    assert list(drawn) == list(replication_figures.CAPTIONS)
    labels = {
        "accuracy": ("accuracy", "step"),
        "rise_and_collapse": ("reward, accuracy", "step"),
        "label_accuracy": ("share of right labels", "step"),
        "kl": ("KL, nats a token", "step"),
        "entropy": ("entropy, nats a token", "step"),
        "samples": ("held-out accuracy", "step"),
        "cures": ("held-out accuracy", "step"),
        "ends": ("arm", "held-out accuracy"),
    }
    ids = []
    for name, svg in drawn.items():
        tree = ElementTree.fromstring(svg)
        texts = {"".join(t.itertext()) for t in tree.iter("{http://www.w3.org/2000/svg}text")}
        assert {*labels[name]} <= texts, name
        assert tree.get("aria-label") and "nan" not in svg.lower().replace("nanometre", "")
        ids += re.findall(r'\bid="([^"]*)"', svg)
        targets = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)
        assert {a or b for a, b in targets} <= set(ids)
    assert len(ids) == len(set(ids))
    assert {"n = 4", "n = 8", "n = 16", "n = 32"} <= set(
        re.findall(r">([^<>]*)</text>", drawn["samples"])
    )


def test_the_line_is_the_median_and_the_band_the_range(tmp_path):
    by_seed = {s: {"srt": [0.5, height, 0.5, 0.5, 0.5]} for s, height in enumerate((0.5, 0.5, 1.0))}
    data = replicate.collect(make(tmp_path / "r", by_seed, seeds=3))
    figure = replication_figures._figure(3)
    axes = figure.add_subplot()
    replication_figures._line(axes, data, "srt", "eval/mean", "SRT")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.5, 0.5, 0.5, 0.5, 0.5])
    low, high = axes.collections[0].get_datalim(axes.transData).intervaly
    assert (low, high) == (0.5, 1.0)
    replication_figures._line(axes, data, "early_stop", "eval/mean", "early stopping")
    marks = [tuple(np.asarray(c.get_offsets())[0]) for c in axes.collections[2:]]
    assert marks == [(40.0, 1.0)] * 3  # it stopped at step 40 and gave back step 20's 1.0


def test_arms_of_one_chart_differ_in_colour_or_dash_also_for_the_colour_blind():
    """Machado, Oliveira and Fernandes (2009): deuteranopia and protanopia, severity 1."""
    blind = {
        "none": np.eye(3),
        "deuteranopia": np.array(
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.01182, 0.04294, 0.968881],
            ]
        ),
        "protanopia": np.array(
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ]
        ),
    }
    charts = (
        replication_figures.SIGNALS,
        ("ground_truth", "srt", *replication_figures.CURES),
        ("n4", "n8", "srt", "n32"),
    )

    def seen(arm, matrix):
        colour = replication_figures.COLOURS[arm][0]
        light = np.array([(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)])
        return np.clip(matrix @ light, 0, 1) ** (1 / 2.2)

    for matrix in blind.values():
        for chart in charts:
            for a, b in combinations(chart, 2):
                same_dash = replication_figures.COLOURS[a][1] == replication_figures.COLOURS[b][1]
                apart = np.abs(seen(a, matrix) - seen(b, matrix)).max()
                assert apart > (0.2 if same_dash else 0.05), (a, b)


# -- the page and the docs


def test_the_page(paper, drawn, monkeypatch):
    monkeypatch.setattr(replicate, "figures", lambda data: drawn)
    text = replicate.write(paper).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not any(name.startswith("on") or name == "src" for _, name, _ in page.attributes)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text) and "@import" not in text
    assert len(page.ids) == len(set(page.ids)) and page.tags.count("svg") == 8
    assert page.text.count("uv run selfevolve srt replicate") == 2
    assert "300 s (5 min)" in page.text and "python" in page.text and "platform" in page.text
    for row in replicate.verdicts(replicate.collect(paper)):
        assert row.claim in page.text and row.seen in page.text
    assert "Not there yet" not in page.text
    assert "0.750 → 0.250" in page.text and "1.000 → 0.500" in page.text  # majority, greedy


def test_the_arms_table_by_hand(tmp_path):
    by_seed = {s: {"srt": [0.5, top, 0.25]} for s, top in enumerate((0.625, 0.75, 1.0))}
    data = replicate.collect(make(tmp_path / "r", by_seed, seeds=3))
    row = replicate.arms_table(data)[0]
    assert (row.title, row.seeds, row.base, row.step) == ("SRT", 3, "0.500", "10")
    assert row.peak == "0.750 (0.625 to 1.000)" and row.final == "0.250"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "uv run selfevolve srt replicate"),
        ({"quick": True}, "uv run selfevolve srt replicate --quick"),
        ({"seeds": 3, "seed": 2}, "uv run selfevolve srt replicate --seeds 3 --seed 2"),
        ({"arms": ["srt", "n4"]}, "uv run selfevolve srt replicate --arms srt n4"),
        ({"arms": list(reversed(ARMS))}, "uv run selfevolve srt replicate"),
    ],
)
def test_the_command(tmp_path, config, says):
    run = make(tmp_path / "r", config={"seeds": 5} | config, seeds=1)
    assert replicate.command(replicate.collect(run)) == says


def test_the_docs_link_what_is_written(paper, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(replicate, "figures", lambda data: drawn)
    other = tmp_path / "docs" / "srt.md"
    other.parent.mkdir()
    other.write_text("mine")
    paths = replicate.write_docs(paper, tmp_path / "docs")
    assert other.read_text() == "mine" and paths[0].name == "replicate.md"
    text = paths[0].read_text()
    linked = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert linked == [p.name for p in paths[1:]] and len(linked) == 8
    for path in paths[1:]:
        ElementTree.fromstring(path.read_text())
    tables = [line for line in text.splitlines() if line.startswith("| SRT collapses")]
    assert len(tables) == 1 and tables[0].count("|") == 5 and "**yes**" in tables[0]
    assert str(tmp_path) not in text and str(paper) not in text
    assert "Made by `uv run selfevolve srt replicate`." in text


def test_hostile_names_stay_text(tmp_path, monkeypatch):
    name = "<b>$x^|<i>"
    run = make(
        tmp_path / "<i>r",
        {0: {name: COLLAPSE}},
        config={"note": "<script>\x00 | {{ 7*7 }}"},
        seeds=1,
    )
    data = replicate.collect(run)
    figures = {
        "accuracy": replication_figures._every_arm(data),
        "ends": replication_figures._ends(data),
    }
    figures = {k: replication_figures._svg(figure, k, k) for k, figure in figures.items()}
    monkeypatch.setattr(replicate, "figures", lambda data: figures)
    page = Page(replicate.write(run).read_text())
    assert not {"b", "i", "script"} & set(page.tags)
    assert name in page.text and "<script>� | {{ 7*7 }}" in page.text
    text = replicate.write_docs(run, tmp_path / "docs")[0].read_text()
    row = next(line for line in text.splitlines() if "$x^" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 9 and "<b>" not in text


def test_two_writes_are_byte_identical_even_across_processes(tmp_path):
    few = dict.fromkeys([arm for arm in ARMS if arm not in ("srt", "early_stop", "n4")])
    run = make(tmp_path / "r", {0: few}, seeds=1)
    first = replicate.write(run).read_bytes()
    code = "import sys; from selfevolve_jax.report.replicate import write; write(sys.argv[1])"
    code += "; assert 'jax' not in sys.modules"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, env=environment, check=True)
    assert (run / "report.html").read_bytes() == first


def test_a_full_disk_keeps_the_old_files(tmp_path, monkeypatch, cheap):
    run = make(tmp_path / "r", seeds=1)
    first = replicate.write(run).read_bytes()
    pages = [p.read_bytes() for p in replicate.write_docs(run, tmp_path / "docs")]

    def refuse(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match=r"report\.html: No space left"):
        replicate.write(run)
    with pytest.raises(DiskError, match=r"replicate-accuracy\.svg: No space left"):
        replicate.write_docs(run, tmp_path / "docs")
    monkeypatch.undo()
    assert (run / "report.html").read_bytes() == first
    assert sorted(p.read_bytes() for p in (tmp_path / "docs").iterdir()) == sorted(pages)
