import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from selfevolve_jax import run_dir
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.metrics import MetricLog
from selfevolve_jax.report import figures, write_report
from selfevolve_jax.report.load import load_arms

ROOT = Path(run_dir.__file__).parents[1]
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """The page as text, tables, ids and the elements it has; complains of tags that do not pair."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes = [], [], [], []
        self.rows, self.headings, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if self.rows and set(self.open) & {"td", "th"}:
            self.rows[-1][-1] += data
        if set(self.open) & {"h1", "h2", "h3"}:
            self.headings[-1] += data

    def row(self, first):
        found = [[cell.strip() for cell in row] for row in self.rows if row[0].startswith(first)]
        assert len(found) == 1, f"{len(found)} rows begin with {first}"
        return found[0]


def page_of(path):
    return Page(Path(path).read_text(encoding="utf-8"))


def sample_row(step, prompt="1+1=", text="2", **others):
    sample = {
        **{"text": text, "answer": "2", "reward": 1.0, "trained": True, "parts": {}},
        **{"length": 1, "stopped": True},
    }
    return {
        **{"step": step, "row": 0, "prompt": prompt, "gold": "2", "pseudo_label": "2"},
        **{"majority_fraction": 1.0, "votes": {"2": 1}, "samples": [sample]},
        **others,
    }


def make_arm(path, lines, config=None, samples=None):
    run = run_dir.create(str(path), config or {"seed": 0, "lr": 1e-4}, resume=False)
    log = MetricLog(run, resume_step=None)
    for step, metrics in lines.items():
        log.log(step, metrics)
    log.close()
    for step, rows in (samples or {}).items():
        run_dir.write_samples(run, step, rows)
    return run


def make_run(path, arms, config=None, samples=None, summary=True):
    """A run with arms: {name: [held-out mean at step 0, 10, 20, …]}."""
    run = run_dir.create(str(path), config or {"seed": 0}, resume=False)
    figures_ = {}
    for name, means in arms.items():
        lines = {
            10 * i: {"eval/mean": m, "eval/greedy": 0.9, "reward/mean": 0.5, "time/rollout": 2.0}
            for i, m in enumerate(means)
        }
        make_arm(run / "arms" / name, lines, config, samples)
        figures_[name] = {
            "before": {"mean": means[0], "greedy": 0.9},
            "after": {"mean": means[-1], "greedy": 0.9},
        }
    if summary:
        run_dir.write_summary(run, {"arms": figures_, "seconds": 1.0})
    return run


# -- the headline


def test_one_run_with_arms(tmp_path):
    run = make_run(tmp_path / "q", {"srt": [0.25, 0.75], "random": [0.25, 0.125]})
    path = write_report([run])
    assert path == run / "report.html"
    page = page_of(path)
    assert page.row("srt") == ["srt", "0.250", "0.750", "+0.500", "0.900", "0.900", "+0.000"]
    assert page.row("random")[1:4] == ["0.250", "0.125", "-0.125"]
    assert page.row("Arm") == ["Arm", "mean", "greedy"]
    assert "held-out mean accuracy rose from 0.250 to 0.750." in page.text
    assert "held-out mean accuracy fell from 0.250 to 0.125." in page.text
    assert "still running" not in page.text


def test_seeds_become_one_arm_with_mean_and_range(tmp_path):
    for seed, after in enumerate((0.5, 0.75, 1.0)):
        make_run(
            tmp_path / f"s{seed}", {"srt": [0.25, after]}, {"seed": seed, "trainer": {"lr": 1}}
        )
    runs = [tmp_path / f"s{seed}" for seed in range(3)]
    page = page_of(write_report(runs, tmp_path / "out"))
    assert (tmp_path / "out" / "report.html").exists()
    first, before, after, rise = page.row("srt")[:4]
    assert first == "srt3 runs" and before == "0.2500.250 to 0.250"
    assert after == "0.7500.500 to 1.000" and rise == "+0.500"
    assert "(mean of 3 runs)" in page.text
    assert page.row("seed")[1] == "srt: 0srt: 1srt: 2"


def test_runs_of_other_configs_keep_apart_under_one_arm_name(tmp_path):
    make_run(tmp_path / "slow", {"srt": [0.2, 0.4]}, {"seed": 0, "trainer": {"lr": 1e-4}})
    make_run(tmp_path / "fast", {"srt": [0.2, 0.1]}, {"seed": 0, "trainer": {"lr": 1e-3}})
    page = page_of(write_report([tmp_path / "slow", tmp_path / "fast"], tmp_path / "r.html"))
    assert page.row("srt (slow)")[3] == "+0.200" and page.row("srt (fast)")[3] == "-0.100"


def test_the_rise_never_compares_different_runs(tmp_path):
    for seed, (before, after) in enumerate((({"mean": 0.2}, {"mean": 0.4}), ({"mean": 0.8}, {}))):
        run = make_run(tmp_path / str(seed), {"srt": [0.2, 0.3]}, {"seed": seed})
        run_dir.write_summary(run, {"arms": {"srt": {"before": before, "after": after}}})
    page = page_of(write_report([tmp_path / "0", tmp_path / "1"], tmp_path / "r.html"))
    assert page.row("srt")[3] == "+0.200"  # not 0.4 - 0.5


def test_a_single_arm_run_that_has_not_ended(tmp_path):
    lines = {0: {"eval/mean": 0.5}, 1: {"reward/mean": 0.1}, 2: {"eval/mean": 0.625}}
    page = page_of(write_report([make_arm(tmp_path / "mine", lines)]))
    assert page.row("mine")[1:] == ["0.500", "0.625", "+0.125"]
    assert "still running, or stopped early" in page.text


def test_a_collapse_is_told(tmp_path):
    page = page_of(write_report([make_run(tmp_path / "c", {"srt": [0.48, 0.93, 0.3]})]))
    assert "fell from 0.480 to 0.300, after a peak of 0.930 at step 10." in page.text
    page = page_of(write_report([make_run(tmp_path / "d", {"srt": [0.48, 0.5, 0.3]})]))
    assert "peak" not in page.text  # a start from near the peak is no rise before the fall


def test_headline_metrics_of_other_systems(tmp_path):
    run = make_arm(tmp_path / "dgm", {0: {"compile/count": 1}})
    arms = {"dgm": {"before": {"held_out": 0.2}, "after": {"held_out": 0.5}}}
    run_dir.write_summary(run, {"arms": arms})
    page = page_of(write_report([run]))
    assert page.row("Arm")[1] == "held out" and page.row("dgm")[1:] == ["0.200", "0.500", "+0.300"]


# -- charts


def test_charts_are_drawn_for_logged_metrics_and_no_others(tmp_path):
    run = make_run(tmp_path / "q", {"srt": [0.2, 0.3], "ground_truth": [0.2, 0.3]})
    page = page_of(write_report([run]))
    assert [h for h in page.headings if not h.endswith("step 0")] == [
        "How the model changed",
        "Did it get better?",
        "Held-out accuracy, mean of samples",
        "Held-out accuracy, greedy",
        "What it was told, and whether that was true",
        "Reward that the policy trained on",
        "Speed",
        "Where the time went",
        "How to run it again",
    ]
    assert page.tags.count("svg") == page.tags.count("figure") == 4
    assert "ground_truth 0.3" in page.text and "4 s" in page.text  # 2 lines of 2 seconds


def test_a_metric_that_is_only_null_has_no_chart(tmp_path):
    run = make_arm(tmp_path, {0: {"kl/ref": float("nan"), "reward/mean": 0.5}})
    page = page_of(write_report([run]))
    assert "Distance from the starting policy" not in page.headings
    assert "Reward that the policy trained on" in page.headings


def test_an_arm_keeps_its_colour_where_another_lacks_the_metric(tmp_path):
    run = run_dir.create(str(tmp_path), {}, False)
    make_arm(run / "arms" / "a", {0: {"reward/mean": 0.5}})
    make_arm(run / "arms" / "b", {0: {"reward/mean": 0.5, "kl/ref": 0.1}})
    text = write_report([run]).read_text()
    charts = dict(re.findall(r'<h3 id="([\w-]+)-title">.*?(<svg.*?</svg>)', text, flags=re.S))
    assert {"var(--arm0)", "var(--arm1)"} <= set(
        re.findall(r"var\(--arm\d\)", charts["reward-mean"])
    )
    assert set(re.findall(r"var\(--arm\d\)", charts["kl-ref"])) == {"var(--arm1)"}


def test_over_runs_by_hand():
    runs = [
        (np.array([0, 1, 2]), np.array([0.0, 1.0, np.nan])),
        (np.array([0, 2, 3]), np.array([1.0, np.nan, 5.0])),
    ]
    curve = figures.over_runs("a", 0, runs)
    assert curve is not None
    np.testing.assert_array_equal(curve.steps, [0, 1, 2, 3])
    np.testing.assert_array_equal(curve.mean, [0.5, 1.0, np.nan, 5.0])
    np.testing.assert_array_equal(curve.low, [0.0, 1.0, np.nan, 5.0])
    np.testing.assert_array_equal(curve.high, [1.0, 1.0, np.nan, 5.0])
    assert figures.over_runs("a", 0, [(np.array([0]), np.array([np.nan]))]) is None
    assert figures.over_runs("a", 0, []) is None


def test_long_curves_are_thinned_without_losing_a_spike():
    values = np.zeros(10_000)
    values[1234] = 7.0
    curve = figures.over_runs("a", 0, [(np.arange(10_000), values)])
    assert curve is not None and len(curve.steps) == figures.MAX_POINTS
    assert curve.high.max() == 7.0 and curve.low.min() == 0.0
    assert curve.mean.mean() == pytest.approx(values.mean())


@pytest.mark.parametrize(
    "values", [[0.5], [0.0, 0.0], [-3.0, 2.0], [1e-7, 2e-7], [1e9, 2e9], [np.nan, 1.0, np.nan]]
)
@pytest.mark.parametrize("fraction", [False, True])
def test_charts_of_odd_values_are_well_formed(values, fraction):
    curve = figures.over_runs("a", 0, [(np.arange(len(values)), np.array(values))])
    assert curve is not None
    svg = figures.line_chart("x", [curve] * 9, fraction)
    assert Page(svg).tags[0] == "svg" and "nan" not in svg.replace("finance", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.9634, "0.963"),
        (0, "0"),
        (51_300, "51.3k"),
        (1.2e-6, "1.2e-06"),
        (2.5e6, "2.5M"),
        (-2, "-2"),
    ],
)
def test_compact(value, text):
    assert figures.compact(value) == text


def test_nine_labels_at_one_height_do_not_overlap():
    curves = [figures.over_runs(f"arm{i}", i, [(np.arange(3), np.full(3, 1.0))]) for i in range(9)]
    svg = figures.line_chart("x", [c for c in curves if c], True)
    heights = [float(y) for y in re.findall(r' y="([\d.]+)"[^>]*>arm\d', svg)]
    assert len(heights) == 9
    assert np.diff(sorted(heights)).min() > 9  # points; the labels are 9 high


# -- hostile text


HOSTILE = "<script>alert('x')</script> </pre></table>{{ 7*7 }} &lt; \x00\x1b[31m \ud800 $x^2$"


def test_hostile_text_stays_text_everywhere(tmp_path):
    row = sample_row(1, HOSTILE, HOSTILE, votes={HOSTILE: 3}, pseudo_label=HOSTILE, gold=HOSTILE)
    row["samples"][0]["answer"] = HOSTILE
    name = "<b>$x^"
    run = make_run(tmp_path / "<i>q", {name: [0.1, 0.2]}, {"seed": HOSTILE}, {1: [row]})
    text = write_report([run]).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "i"} & set(page.tags)
    assert page.tags.count("b") == 1  # the bar of votes
    shown = "<script>alert('x')</script> </pre></table>{{ 7*7 }} &lt; ��[31m � $x^2$"
    # prompt, response, answer, vote, pseudo-label, true answer, config
    assert page.text.count(shown) == 7 and "<b>$x^ 0.2" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)


def test_the_page_needs_nothing_from_outside(tmp_path):
    run = make_run(tmp_path / "q", {"srt": [0.2, 0.3]}, samples={1: [sample_row(1)]})
    text = write_report([run]).read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not any(name.startswith("on") or name == "src" for _, name, _ in page.attributes)
    hrefs = {value for _, name, value in page.attributes if name == "href"}
    assert hrefs and all(href.startswith("#") and href[1:] in page.ids for href in hrefs)
    assert "http" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    clips = set(re.findall(r"url\(#([^)]*)\)", text))
    assert clips <= set(page.ids)


def test_samples_of_the_first_and_last_step_are_shown_in_part(tmp_path):
    many = sample_row(9, "p" * 4000 + "END", "START" + "t" * 4000)
    many["samples"] = many["samples"] * 10
    many["votes"] = {f"answer{i}": 9 - i for i in range(9)}
    samples = {step: [sample_row(step, f"step{step}=")] for step in (1, 5)} | {9: [many] * 4}
    page = page_of(write_report([make_arm(tmp_path / "r", {1: {"reward/mean": 1}}, None, samples)]))
    assert "r, step 1" in page.headings and "r, step 9" in page.headings
    assert "step5=" not in page.text and "r, step 5" not in page.headings
    assert page.text.count("pEND") == 2 and page.text.count("STARTt") == 2 * 3
    assert "[2,503 more characters] … p" in page.text and "t … [2,505 more characters]" in page.text
    assert "and 4 other answers" in page.text and "answer4" in page.text
    assert "answer5" not in page.text


# -- the same in, the same out; and bad input


def test_two_writes_are_byte_identical_even_across_processes(tmp_path):
    run = make_run(
        tmp_path / "q", {"srt": [0.2, 0.3], "random": [0.2, 0.1]}, samples={1: [sample_row(1)]}
    )
    first = write_report([run]).read_bytes()
    code = "import sys; from selfevolve_jax.report import write_report; write_report([sys.argv[1]])"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT, env=environment, check=True)
    assert (run / "report.html").read_bytes() == first


def test_the_report_does_not_import_jax():
    code = "import sys, launch.report, selfevolve_jax.report; print(*[m in sys.modules for m in M])"
    code = code.replace("M]", "('jax', 'matplotlib')]")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_several_runs_go_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / s, {"srt": [0.2, 0.3]}, {"seed": s}) for s in "ab"]
    assert os.fspath(write_report(runs)) == "report.html" and (tmp_path / "report.html").exists()


def damage(run, name, text):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", "{", r"config\.json cannot be read"),
        ("arms/srt/config.json", "[]", r"arms/srt/config\.json is damaged"),
        ("summary.json", "{", r"summary\.json cannot be read"),
        ("summary.json", "{}", r"summary\.json is damaged"),
        ("summary.json", '{"arms": {"srt": {"before": {}}}}', r"summary\.json is damaged"),
        (
            *("summary.json", '{"arms": {"srt": {"before": {"mean": "0.5"}, "after": {}}}}'),
            r"summary\.json is damaged",
        ),
        ("arms/srt/metrics.jsonl", "x\n{}\n", r"arms/srt/metrics\.jsonl line 1"),
        ("arms/srt/samples/step_000001.jsonl", "{}\n", r"step_000001\.jsonl line 1"),
        (
            *("arms/srt/samples/step_000001.jsonl", '{"prompt": "p", "samples": [{"text": 3}]}\n'),
            r"step_000001\.jsonl line 1 is damaged",
        ),
        (
            "arms/srt/samples/step_000001.jsonl",
            json.dumps(sample_row(1, votes={"a": "b"})) + "\n",
            r"step_000001\.jsonl line 1 is damaged",
        ),
    ],
)
def test_damaged_inputs_are_named_and_the_old_report_stays(tmp_path, name, text, says):
    run = make_run(tmp_path / "q", {"srt": [0.2, 0.3]})
    (run / "report.html").write_text("old")
    damage(run, name, text)
    with pytest.raises(UserError, match=says):
        write_report([run])
    assert (run / "report.html").read_text() == "old"


def test_missing_inputs(tmp_path):
    run = make_run(tmp_path / "q", {"srt": [0.2, 0.3]})
    with pytest.raises(UserError, match="absent is not a run directory"):
        write_report([tmp_path / "absent"])
    with pytest.raises(UserError, match="given twice"):
        write_report([run, f"{run}/../q"], tmp_path / "r.html")
    with pytest.raises(UserError, match="no run directory given"):
        write_report([])
    with pytest.raises(UserError, match="nothing is logged"):
        write_report([make_arm(tmp_path / "new", {})])
    (run / "arms" / "srt" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"arms/srt/metrics\.jsonl does not exist"):
        write_report([run])
    (tmp_path / "q" / "arms" / "srt").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no arm yet"):
        write_report([run])


def test_a_full_disk_keeps_the_old_report(tmp_path, monkeypatch):
    run = make_run(tmp_path / "q", {"srt": [0.2, 0.3]})
    first = write_report([run]).read_bytes()

    def refuse(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match=r"report\.html: No space left"):
        write_report([run])
    monkeypatch.undo()
    assert (run / "report.html").read_bytes() == first


def test_arms_are_in_the_order_of_the_summary(tmp_path):
    run = make_run(tmp_path / "q", {"srt": [0.2], "ground_truth": [0.2], "a": [0.2]})
    assert [arm.label for arm in load_arms([run])] == ["srt", "ground_truth", "a"]
    (run / "summary.json").unlink()
    assert [arm.label for arm in load_arms([run])] == ["a", "ground_truth", "srt"]
