"""`selfevolve evaluate` and `selfevolve label`, as typed, on a run that the CLI made."""

import json

import datasets
import pytest

from launch import evaluate as command
from launch import problems
from launch.cli import main
from selfevolve_jax import evaluate, run_dir, sampling_job
from selfevolve_jax.labels import read_labels
from selfevolve_jax.suites import SUITES
from tests.launch.test_cli import finished, place, refused, says, texts_policy, tree

__all__ = ["finished", "place", "texts_policy"]  # fixtures


def samples(folder):
    parts = sorted(folder.glob("part_*.jsonl"))
    return [record for part in parts for record in run_dir.read_samples(part)]


def test_evaluate_gives_the_runs_own_greedy_figure(finished, place, capsys):
    """Greedy needs no random numbers: the arm's last figure is found again to the digit. And the
    printed figures are those of the stored samples."""
    arm, out = finished / "arms" / "srt", place / "new" / "evaluation"
    options = ["--k", "2", "--rollout.slots", "16", "--pass-at", "1"]
    main(["evaluate", str(arm), *options, "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    figures = summary["figures"]
    after = run_dir.read_summary(finished)["arms"]["srt"]["after"]
    assert figures["greedy"] == after["greedy"]
    records = samples(out)
    marks = [[s["correct"] for s in record["samples"]] for record in records]
    assert len(marks) == summary["problems"] == 8
    assert figures["avg@2"] == figures["pass@1"] == sum(map(sum, marks)) / 16
    assert figures["pass@2"] == sum(map(any, marks)) / 8
    for record in records:
        for sample in record["samples"]:
            end = sample["text"][-2:]
            assert sample["correct"] == (end == record["gold"] + "." and len(end) == 2)
    shown = capsys.readouterr().out
    for name, value in figures.items():
        low, high = summary["intervals"][name]
        assert low <= value <= high
        assert f"{name:<10}{value:.3f}  [{low:.3f}, {high:.3f}]" in shown
    # Typed again, everything is there; with another k it is refused.
    before = tree(out)
    main(["evaluate", str(arm), *options, "--out", str(out)])
    assert capsys.readouterr().out == shown and tree(out) == before
    message = refused(capsys, "evaluate", arm, "--k", "4", "--out", out)
    assert says(message, "samples: 2 -> 4", "another folder")


def test_evaluate_keeps_nothing_unless_asked(finished, place, capsys):
    main(["evaluate", str(finished / "arms" / "srt"), "--k", "1", "--limit", "2"])
    assert "2 problems, 1 samples each" in capsys.readouterr().out and tree(place) == []


def test_evaluate_refuses_a_place_in_use_and_an_unknown_arm(finished, place, capsys):
    arm = finished / "arms" / "srt"
    (place / "figures.json").write_text("{}")
    assert says(refused(capsys, "evaluate", arm, "--out", place), f"{place} is not empty")
    out = place / "figures.json"
    assert says(refused(capsys, "evaluate", arm, "--out", out), "is a file")
    assert says(refused(capsys, "evaluate", arm, "--out", arm), "holds a run, not evaluation")
    assert "Its arms are" in refused(capsys, "evaluate", finished)


def test_generate_says_what_evaluate_graded(finished, place, capsys):
    arm = str(finished / "arms" / "srt")
    greedy = ["--sampling.temperature", "0"]
    main(["evaluate", arm, "--k", "1", "--limit", "2", *greedy, "--out", "evaluation"])
    for record in samples(place / "evaluation"):
        text = record["samples"][0]["text"]
        assert record["greedy"] == record["samples"][0]
        capsys.readouterr()
        main(["generate", arm, "--prompt", record["prompt"], "--max-new-tokens", "5", *greedy])
        assert capsys.readouterr().out == text + "\n"


DATA = ["--pattern", r"\d", "--equivalence", "exact", "--max-new-tokens", "5"]


def test_evaluate_asks_every_row_of_a_file(texts_policy, place, capsys):
    rows = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(5)]
    (place / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    main(["evaluate", str(texts_policy), "--suite", "data.jsonl", *DATA, "--k", "2", "--out", "x"])
    assert [r["prompt"] for r in samples(place / "x")] == [r["question"] for r in rows]
    assert [r["gold"] for r in samples(place / "x")] == [r["answer"] for r in rows]
    # Rows without gold cannot be graded, but they can be labelled.
    (place / "bare.jsonl").write_text("".join(json.dumps({"question": "1+1="}) + "\n"))
    bare = ["--suite", "bare.jsonl", *DATA, "--answer-column", "None"]
    assert "no gold" in refused(capsys, "evaluate", texts_policy, *bare)
    main(["label", str(texts_policy), *bare, "--samples", "2", "--out", "y"])
    assert "no gold" in capsys.readouterr().out
    assert read_labels(place / "y")[0].pass_rate is None


def test_a_suite_sets_what_is_not_typed(place, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "evaluate", asked.append)
    main(["evaluate", "none", "--suite", "math-500"])
    main(["evaluate", "none", "--suite", "gsm8k=x", "--no-chat", "--suffix", "?", "--k", "3"])
    main(["evaluate", "none", "--suite", "x.jsonl"])
    first, second, third = asked
    assert (first.question_column, first.chat, first.k) == ("problem", True, 16)
    assert first.suffix == SUITES["math-500"].suffix
    assert (second.question_column, second.chat, second.suffix, second.k) == (
        "question",
        False,
        "?",
        3,
    )
    assert (third.question_column, third.chat, third.suffix) == ("question", False, "")
    data = problems._data(second, second.suite)
    assert (data.path, data.subset, data.split, data.chat) == ("x", "main", "test", False)
    assert data.answer_pattern == SUITES["gsm8k"].answer_pattern


def test_a_missing_suite_is_named_before_weights_are_read(texts_policy, place, capsys, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(problems.source, "load_policy", None)
    message = refused(capsys, "evaluate", texts_policy, "--suite", "aime25")
    assert says(message, "hf download --repo-type dataset math-ai/aime25 --local-dir DIR")
    assert says(message, "--suite aime25=DIR")


def test_a_policy_without_a_template_is_told_its_own_option(texts_policy, place, capsys):
    data = datasets.Dataset.from_list([{"problem": "1+1=", "answer": "2"}])
    datasets.DatasetDict({"test": data}).save_to_disk("copy")
    capsys.readouterr()
    message = refused(capsys, "evaluate", texts_policy, "--suite", "math-500=copy")
    assert says(message, "no chat template", "--no-chat") and "task." not in message


def test_label_labels_the_runs_own_training_rows(finished, place, capsys, monkeypatch):
    """In parts; killed within the second, the same command ends in the same bytes."""
    arm, settings = str(finished / "arms" / "srt"), ["--samples", "4", "--limit", "12"]
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 16)
    main(["label", arm, "--out", "whole", *settings])
    shown = capsys.readouterr().out
    generate, calls = evaluate.generate, []

    def dying(*arguments, **options):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "generate", dying)
        refused(capsys, "label", arm, "--out", "killed", *settings, code=130)
    main(["label", arm, "--out", "killed", *settings])
    for name in ("labels.jsonl", "part_00000.jsonl", "part_00002.jsonl"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
    labels = read_labels("whole")
    records = samples(place / "whole")
    assert list(labels) == [r["row"] for r in records] and len(labels) == 12
    assert min(labels) > 0  # train rows, which are numbered after the held-out ones
    right = sum(labels[r["row"]].answer == r["gold"] for r in records) / 12
    fraction = sum(label.majority_fraction for label in labels.values()) / 12
    assert f"label accuracy     {right:.3f}" in shown
    assert f"majority fraction  {fraction:.3f}" in shown and "12 rows, 4 samples each" in shown
    assert says(refused(capsys, "evaluate", arm, "--out", "whole"), "holds labels, not evaluation")


@pytest.mark.parametrize("name", ["evaluate", "label"])
def test_what_is_not_a_run_needs_a_suite(texts_policy, place, capsys, name):
    out = ["--out", "x"] if name == "label" else []
    assert "Give a --suite" in refused(capsys, name, texts_policy, *out)
    assert tree(place) == []
