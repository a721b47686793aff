"""Written questions against a stand-in for the engine, whose texts are known; and once with a model."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import ModelConfig
from selfevolve_jax import evaluate, run_dir, sampling_job, state
from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import FilterConfig
from selfevolve_jax.labels import Label, label_rows, with_labels
from selfevolve_jax.rollout.engine import RolloutConfig, Samples
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.synthetic import (
    PROMPTS,
    QUESTIONS,
    VOTED,
    bare_problems,
    keep_voted,
    majority_answers,
    plan,
    synthesise,
)
from selfevolve_jax.tasks.base import AnswerSpec, Row, Task
from selfevolve_jax.tasks.dataset import DataConfig, load_task, read_problems
from selfevolve_jax.tasks.prompts import Problem
from tests.seeing import IMAGES, TURN_END, VISION, png, tokenizer

TEXT = tokenizer()
A, B = png(8, 8, seed=1), png(16, 8, seed=2)
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture
def source(tmp_path):
    """Two rows about one image, one about another, one with both, one of text alone, one without gold
    that would do for a label."""
    (tmp_path / "a.png").write_bytes(A)
    (tmp_path / "b.png").write_bytes(B)
    both = ["a.png", str(tmp_path / "b.png")]
    rows = [
        ("<image>How many dots?", "3", "a.png"),
        ("How wide is it?", "8", "a.png"),
        ("What is {answer}?", "9", "b.png"),
        ("Is <image> larger than <image>?", "no", both),
        ("1+1?", "2", None),
    ]
    file = tmp_path / "source.jsonl"
    named = [dict(zip(("question", "answer", "images"), row, strict=True)) for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in named))
    return DataConfig(str(file), image_column="images", chat=True, held_out_fraction=0.0)


def planned(problems, **changes):
    settings = {"mode": "direct", "vision": VISION, "images": IMAGES}
    if changes.get("mode") == "in_context":
        settings["answers"] = {p.id: p.gold for p in problems}
    return plan(problems, TEXT, **(settings | changes))


def test_direct_sees_each_image_once_and_no_question(source):
    found = planned(read_problems(source))
    assert [p.id for p in found.sources] == [row.id for row in found.rows] == [0, 2, 3]
    assert found.skipped == {"same_image": 1, "without_image": 1}
    for row, images in zip(found.rows, (1, 1, 2), strict=True):
        turn = f"user\n{SHOWN * images}{PROMPTS['direct']}<|im_end|>"
        assert turn in row.prompt and row.gold is None and len(row.images) == images
    a, b = found.keys[0][0], found.keys[1][0]
    assert a != b and found.keys[2] == (a, b)
    assert found.about == {
        (a,): ("How many dots?", "How wide is it?"),
        (b,): ("What is {answer}?",),
        (a, b): ("Is  larger than ?",),
    }


def test_in_context_sees_question_and_answer_as_texts(source):
    found = planned(read_problems(source), mode="in_context")
    assert [row.id for row in found.rows] == [0, 1, 2, 3] and found.skipped == {"without_image": 1}
    assert "Question: How many dots?\nAnswer: 3\n" in found.rows[0].prompt
    # Braces in a question are its own, and images stand before it all.
    assert "Question: What is {answer}?\nAnswer: 9\n" in found.rows[2].prompt
    assert found.rows[3].prompt.count(SHOWN) == 2
    assert {row.gold for row in found.rows} == {None}


def test_bytes_and_files_of_one_image_are_one(source, tmp_path):
    problems = [
        Problem(0, "q", None, {}, (A,)),
        Problem(1, "p", None, {}, (str(tmp_path / "a.png"),)),
    ]
    found = planned(problems)
    assert [row.id for row in found.rows] == [0] and found.about == {found.keys[0]: ("q", "p")}


def label(question, answer):
    return Label(0, f"<turn>{question} Think.", answer, 0.5, {}, 2, 2, None)


def test_the_label_free_variant_shows_the_majority_and_no_gold(source):
    problems = read_problems(replace(source, answer_column=None))
    labels = {0: label("How many dots?", "7"), 1: label("How wide is it?", None)}
    answers = majority_answers(problems, labels)
    assert answers == {0: "7", 1: None}
    found = planned(problems, mode="in_context", answers=answers)
    assert [row.id for row in found.rows] == [0] and "Answer: 7\n" in found.rows[0].prompt
    assert found.skipped == {"without_answer": 3, "without_image": 1}
    with pytest.raises(UserError, match="row 3 asks 'Is <image> larger"):
        majority_answers(problems, {3: label("Is it larger?", "no")})
    assert majority_answers(problems, {3: label(f"Is {SHOWN} larger than {SHOWN}?", "no")})


def test_a_taught_form_and_what_it_must_hold(source):
    problems = read_problems(source)
    found = planned(problems, mode="in_context", prompt="{question}{answer}.ask:")
    assert found.rows[0].prompt.endswith("How many dots?3.ask:<|im_end|>\n<|im_start|>assistant\n")
    for mode, prompt, words in (
        ("in_context", "{question} ask:", "has no {answer}"),
        ("in_context", "ask:", "has no {question}"),
        ("direct", "{question} ask:", "must not have {question}"),
    ):
        with pytest.raises(UserError, match=words):
            planned(problems, mode=mode, prompt=prompt)


def test_a_source_that_will_not_do_is_refused(source):
    problems = read_problems(source)
    with pytest.raises(UserError, match="1 without_image"):
        planned(problems[4:])
    with pytest.raises(UserError, match="answers: gold, or a labels folder"):
        planned(problems, mode="in_context", answers={})
    with pytest.raises(UserError, match="reads text only"):
        planned(problems, vision=None, images=None)
    with pytest.raises(UserError, match=r"row 7: image 'none\.png' cannot be read"):
        planned([Problem(7, "q", None, {}, ("none.png",))])


def test_rows_that_no_data_set_holds_are_read_back():
    row = Row(4, f"{SHOWN}How many?<|im_end|>", (1,), "3", {"kind": "count"}, (A,))
    (problem,) = bare_problems([row], TEXT)
    assert problem == Problem(4, "How many?", "3", {}, (A,))


# The stand-in's texts by source row and sample; one without the end mark was cut short.
WRITTEN = {
    0: [
        "Well. <question>What is the sum of the dots?</question>",
        "<question>How many dots?</question>",
    ],
    1: [
        "<question>What is the sum of the dots</question>",
        "<question>Find its height.</question>",
    ],
    2: ["no idea", "<question>Which is <image> larger?</question>"],
    3: ["<question>Which one is larger?</question>", "CUT<question>How old is it?</question>"],
}


def samples_of(texts):
    ids = [[TEXT.encode(t, add_special_tokens=False) for t in group] for group in texts]
    ended = np.array([[not t.startswith("CUT") for t in group] for group in texts])
    R, G, width = len(texts), len(texts[0]), 100
    tokens, lengths = np.zeros((R, G, width), np.int32), np.zeros((R, G), np.int32)
    for r, g in np.ndindex(R, G):
        row = [*ids[r][g], *[TURN_END] * int(ended[r, g])]
        tokens[r, g, : len(row)], lengths[r, g] = row, len(row)
    return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, ended)


@pytest.fixture
def write(monkeypatch, tiny, mesh1, source):
    calls = []

    def generate(params, prompts, row_ids, n, *_, **__):
        calls.append(list(row_ids))
        if len(calls) == write.dies_at:
            raise KeyboardInterrupt
        return samples_of([WRITTEN[i] for i in row_ids])

    def write(folder, problems=None, mode="in_context", params=None, **changes):
        problems = read_problems(source) if problems is None else problems
        settings = {"per_image": 2, "checkpoint": "runs/a", "seed": 3, "max_new_tokens": 100}
        settings |= {"filters": FilterConfig(), "sampling": Sampling()}
        weights: Any = {"w": jnp.ones(2)} if params is None else params
        return synthesise(
            weights,
            tiny,
            Task("shapes", [], [], TEXT, (TURN_END,), AnswerSpec()),
            planned(problems, mode=mode),
            folder,
            mesh=mesh1,
            rollout=RolloutConfig(8, 4),
            **(settings | changes),
        )

    write.dies_at, write.calls = None, calls
    monkeypatch.setattr(evaluate, "generate", generate)
    monkeypatch.setattr(evaluate, "encode_images", lambda *_: None)
    return write


def lines(folder, name=QUESTIONS):
    return [json.loads(x) for x in (folder / name).read_text().splitlines()]


def test_the_data_set_by_hand(write, tmp_path, source):
    out = tmp_path / "out"
    summary = write(out)
    assert summary == {
        "mode": "in_context",
        "sources": 4,
        "skipped": {"without_image": 1},
        "written": 8,
        "kept": 3,
        "removed": {
            "same_as_source": 1,
            "duplicate": 1,
            "unread": 1,
            "marker": 1,
            "cut_short": 1,
        },
        "filters": run_dir.jsonable(FilterConfig()),
    }
    assert json.loads((out / "summary.json").read_text()) == summary
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    weights = run_dir.read_config(out)["config"]["weights"]
    found = lines(out)
    assert [(x["question"], x["image"], x["source_row"], x["sample"]) for x in found] == [
        ("What is the sum of the dots?", a, 0, 0),
        ("Find its height.", a, 1, 1),
        ("Which one is larger?", [a, b], 3, 0),
    ]
    for line in found:
        assert line.keys() == {
            *("image", "question", "source_row", "source_question", "prompt", "sample"),
            *("mode", "checkpoint", "weights", "seed"),
        }
        assert (line["mode"], line["checkpoint"], line["seed"]) == ("in_context", "runs/a", 3)
        assert line["weights"] == weights and len(weights) == 16
        assert line["source_question"] == read_problems(source)[line["source_row"]].question
    assert "Answer: 3\n" in found[0]["prompt"]
    # Every text is kept, also of those removed.
    (part,) = out.glob("part_*.jsonl")
    assert [[s["text"] for s in r["samples"]] for r in run_dir.read_samples(part)] == list(
        WRITTEN.values()
    )


def test_it_is_a_data_set_that_loads_and_holds_no_answer(write, tmp_path):
    out = tmp_path / "out"
    write(out)
    config = DataConfig(
        str(out / QUESTIONS),
        image_column="image",
        answer_column=None,
        chat=True,
        held_out_fraction=0.0,
    )
    task = load_task(config, TEXT, vision=VISION, images=IMAGES)
    assert [(row.id, row.gold, len(row.images)) for row in task.train] == [
        (0, None, 1),
        (1, None, 1),
        (2, None, 2),
    ]
    assert f"{SHOWN}What is the sum of the dots?" in task.train[0].prompt
    # What the model was shown is beside it, and no column that loading takes for gold.
    with pytest.raises(UserError, match="no column 'answer'"):
        load_task(replace(config, answer_column="answer"), TEXT, vision=VISION, images=IMAGES)


def test_images_held_as_bytes_are_written_beside_it_once(write, tmp_path, monkeypatch):
    problems = [
        Problem(0, "q", "1", {}, (A,)),
        Problem(1, "p", "1", {}, (A,)),
        Problem(3, "o", "1", {}, (A, B)),
    ]
    out = tmp_path / "out"
    assert write(out, problems)["kept"] == 4
    images = [x["image"] for x in lines(out)]
    first = images[0]
    assert images[:3] == [first] * 3 and images[3][0] == first
    assert (out / first).read_bytes() == A and (out / images[3][1]).read_bytes() == B
    assert sorted(p.suffix for p in (out / "images").iterdir()) == [".png", ".png"]
    # A copy of the folder is whole.
    out.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    config = DataConfig(
        "moved/questions.jsonl", image_column="image", answer_column=None, chat=True
    )
    problems = read_problems(config)
    assert len(problems) == 4
    load_task(replace(config, held_out_fraction=0.0), TEXT, vision=VISION, images=IMAGES)


@pytest.mark.parametrize("dies_at", [1, 3, 4])
def test_killed_and_typed_again_it_gives_the_same_bytes(write, tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 2)
    whole = write(tmp_path / "whole")
    write.dies_at = len(write.calls) + dies_at
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed")
    assert not (tmp_path / "killed" / QUESTIONS).exists()
    write.dies_at, before = None, len(write.calls)
    assert write(tmp_path / "killed") == whole
    assert len(write.calls) - before == 5 - dies_at
    for path in (tmp_path / "whole").iterdir():
        if path.name != run_dir.CONFIG:
            assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_killed_between_its_files_it_writes_them_again(write, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(out)
    whole = write(tmp_path / "whole")
    assert write(out) == whole and lines(out) == lines(tmp_path / "whole")


def test_a_finished_folder_is_read_and_another_request_refused(write, tmp_path):
    out = tmp_path / "out"
    first = write(out)
    before, calls = (out / QUESTIONS).read_bytes(), len(write.calls)
    assert write(out) == first
    for change, words in (
        ({"per_image": 3}, "samples: 2 -> 3"),
        ({"seed": 4}, "seed: 3 -> 4"),
        ({"mode": "direct"}, "in_context questions"),
        ({"reads": "(.*)"}, "answer.pattern"),
        ({"params": {"w": jnp.zeros(2)}}, "weights"),
        ({"filters": FilterConfig(duplicates="keep")}, "duplicates: 'normalised' -> 'keep'"),
        ({"filters": FilterConfig(asks="")}, "other filters: asks:"),
    ):
        with pytest.raises(UserError) as caught:
            write(out, **change)
        assert words in str(caught.value)
    with pytest.raises(UserError, match="no regular expression"):
        write(tmp_path / "none", reads="(")
    assert (out / QUESTIONS).read_bytes() == before and len(write.calls) == calls
    assert not (tmp_path / "none").exists()


def test_filters_that_leave_nothing_keep_the_texts(write, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no question is left of the 8 written.*'no_question': 5"):
        write(out, filters=FilterConfig(asks="never"))
    assert not (out / QUESTIONS).exists()
    calls = len(write.calls)
    assert write(out)["kept"] == 3 and len(write.calls) == calls


def votes(folder, fractions, questions):
    folder.mkdir(exist_ok=True)
    found = [
        {
            "id": i,
            "question": f"<turn>{questions[i]}",
            "answer": "5",
            "majority_fraction": fraction,
            "votes": {},
            "parsed": 4,
            "samples": 4,
            "pass_rate": None,
        }
        for i, fraction in enumerate(fractions)
    ]
    (folder / "labels.jsonl").write_text("".join(json.dumps(x) + "\n" for x in found))
    return folder


def test_the_vote_filter_writes_a_second_data_set(write, tmp_path):
    out = tmp_path / "out"
    write(out)
    before, asked = (out / QUESTIONS).read_bytes(), [x["question"] for x in lines(out)]
    labels = votes(tmp_path / "labels", [0.2, 0.5, 1.0], asked)
    found = keep_voted(out, labels, 0.3, 0.9)
    assert found | {"labels": 0} == {
        "low": 0.3,
        "high": 0.9,
        "labels": 0,
        "questions": 3,
        "kept": 1,
        "removed": {"too_scattered": 1, "too_unanimous": 1},
    }
    (line,) = lines(out, VOTED)
    assert line == lines(out)[1] | {"pseudo_label": "5", "majority_fraction": 0.5}
    assert (out / QUESTIONS).read_bytes() == before
    assert keep_voted(out, labels, 0.3, 0.9) == found
    with pytest.raises(UserError, match=r"made with votes between 0\.3 and 0\.9"):
        keep_voted(out, labels, 0.1, 0.9)
    with pytest.raises(UserError, match="made with votes"):
        keep_voted(out, votes(tmp_path / "others", [0.2, 0.6, 1.0], asked), 0.3, 0.9)
    with pytest.raises(UserError, match="no question of 3 has a vote"):
        keep_voted(out, labels, 0.6, 0.7)
    with pytest.raises(UserError, match="labels are of other rows"):
        keep_voted(out, votes(tmp_path / "strange", [0.5] * 3, asked[::-1]), 0.3, 0.9)
    with pytest.raises(UserError, match=r"no questions\.jsonl"):
        keep_voted(tmp_path / "none", labels, 0.3, 0.9)


MODEL = ModelConfig(
    vocab_size=len(TEXT),
    d_model=32,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    mrope_sections=(2, 1, 1),
    vision=VISION,
)


def test_a_model_writes_is_labelled_and_filtered(tmp_path, mesh1, source):
    """From images to a data set, its labels and their filter, with the real engine. Half of all tokens
    end a text, so that a model without training writes texts that end."""
    params = state.init_params(MODEL, jax.random.key(1), mesh1)
    stops = tuple(range(0, len(TEXT), 2))
    problems = read_problems(source)
    task = Task("shapes", [], [], TEXT, stops, AnswerSpec("(?s)(.)", "exact"), images=IMAGES)
    out, settings = tmp_path / "out", {"seed": 0, "mesh": mesh1, "max_new_tokens": 6}
    settings |= {"rollout": RolloutConfig(16, 8), "sampling": Sampling()}

    def write(folder):
        return synthesise(
            params,
            MODEL,
            task,
            planned(problems, prompt="ask:"),
            folder,
            per_image=16,
            checkpoint="tiny",
            filters=FilterConfig(asks=""),
            reads="(?s)(.+)",
            **settings,
        )

    summary = write(out)
    assert summary["sources"] == 3 and summary["written"] == 48 and summary["kept"] > 3
    assert summary["kept"] + sum(summary["removed"].values()) == 48
    assert summary["removed"]["cut_short"] < 24
    per_row = Counter(line["source_row"] for line in lines(out))
    assert set(per_row) == {0, 2, 3}  # the picture is seen: each has texts of its own
    # Another image, and the texts are others; the same again, and they are the same.
    assert write(tmp_path / "again") == summary
    (tmp_path / "a.png").write_bytes(png(8, 8, seed=9))
    moved = write(tmp_path / "moved")

    def texts(folder):
        return [[s["text"] for s in r["samples"]] for r in run_dir.read_samples(folder)]

    before, after = texts(out / "part_00000.jsonl"), texts(tmp_path / "moved" / "part_00000.jsonl")
    assert before[1] == after[1] and before[0] != after[0] and moved["written"] == 48
    config = DataConfig(
        str(out / QUESTIONS),
        image_column="image",
        answer_column=None,
        chat=True,
        held_out_fraction=0.0,
        pattern="(?s)(.)",
        equivalence="exact",
    )
    answering = load_task(config, TEXT, stops, vision=VISION, images=IMAGES)
    labels = label_rows(
        params, MODEL, answering, answering.train, tmp_path / "labels", samples=4, **settings
    )
    assert all(row.gold is None for row in with_labels(answering.train, labels))
    fractions = [labels[row.id].majority_fraction for row in answering.train]
    voted = keep_voted(out, tmp_path / "labels", 0.3, 0.8)
    answered = [labels[row.id].answer is not None for row in answering.train]
    kept = [f for f, known in zip(fractions, answered, strict=True) if known and 0.3 <= f <= 0.8]
    assert voted["kept"] == len(kept) == len(lines(out, VOTED))
