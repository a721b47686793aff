"""Labels by hand, as the majority judge would give them, and what is done with them."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax import evaluate, labels, run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.labels import Label, label_rows, read_labels, top_fraction, with_labels
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.base import Row, Task
from tests.drawn import TEXT, samples_of

ROWS = [Row(4, "1+2=", (2, 3), "3"), Row(9, "7-9=", (4, 5), None), Row(2, "0+0=", (6,), "0")]
TEXTS = {4: ["3.", "4.", "13.", "3"], 9: ["8.", "1.", "1.", "8."], 2: ["", "+", "0", "="]}


@pytest.fixture
def label(monkeypatch, tiny, mesh1):
    calls = []

    def generate(params, prompts, row_ids, n, *_, **__):
        calls.append(list(row_ids))
        if len(calls) == label.dies_at:
            raise KeyboardInterrupt
        return samples_of([TEXTS[i] for i in row_ids])

    def label(folder, rows=ROWS, **changes):
        settings = {"samples": 4, "seed": 0, "max_new_tokens": 6, "sampling": Sampling()}
        return label_rows(
            {"w": jnp.ones(2)},
            tiny,
            Task("t", rows, [], TEXT, (15,), arithmetic.ANSWER),
            rows,
            folder,
            mesh=mesh1,
            rollout=RolloutConfig(8, 4),
            **(settings | changes),
        )

    label.dies_at, label.calls = None, calls
    monkeypatch.setattr(evaluate, "generate", generate)
    return label


def lines(folder):
    return [json.loads(x) for x in (folder / "labels.jsonl").read_text().splitlines()]


def test_labels_by_hand(label, tmp_path):
    found = label(tmp_path)
    assert lines(tmp_path) == [
        {
            "id": 4,
            "question": "1+2=",
            "answer": "3",
            "majority_fraction": 0.5,
            "votes": {"3": 2, "4": 1},
            "parsed": 3,
            "samples": 4,
            "pass_rate": 0.5,
        },
        {
            "id": 9,  # a tie, for the first seen; no gold
            "question": "7-9=",
            "answer": "8",
            "majority_fraction": 0.5,
            "votes": {"8": 2, "1": 2},
            "parsed": 4,
            "samples": 4,
            "pass_rate": None,
        },
        {
            "id": 2,  # nothing can be read
            "question": "0+0=",
            "answer": None,
            "majority_fraction": 0,
            "votes": {},
            "parsed": 0,
            "samples": 4,
            "pass_rate": 0,
        },
    ]
    assert found == read_labels(tmp_path) == {x["id"]: Label(**x) for x in lines(tmp_path)}


def test_they_are_those_of_the_majority_judge(label, tmp_path):
    judge = majority_vote(arithmetic.ANSWER, Equivalence("exact"))
    verdict = judge(ROWS, [TEXTS[row.id] for row in ROWS], 0)
    found = label(tmp_path)
    for row, winner, votes in zip(ROWS, verdict.pseudo_labels, verdict.votes, strict=True):
        assert (found[row.id].answer, found[row.id].votes) == (winner, votes)


def test_gold_does_not_reach_the_answers(label, tmp_path):
    wrong = [replace(row, gold="7") for row in ROWS]
    honest, misled = label(tmp_path / "a"), label(tmp_path / "b", wrong)
    for row in ROWS:
        assert misled[row.id].pass_rate == 0
        assert replace(misled[row.id], pass_rate=honest[row.id].pass_rate) == honest[row.id]


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_killed_and_typed_again_it_gives_the_same_bytes(label, tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 4)
    whole = label(tmp_path / "whole")
    label.dies_at = len(label.calls) + dies_at
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path / "killed")
    assert not (tmp_path / "killed" / "labels.jsonl").exists()
    with pytest.raises(UserError, match="same command is given again"):
        read_labels(tmp_path / "killed")
    label.dies_at, before = None, len(label.calls)
    assert label(tmp_path / "killed") == whole
    assert len(label.calls) - before == 4 - dies_at
    for name in ("labels.jsonl", "part_00000.jsonl", "part_00001.jsonl", "part_00002.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_folder_is_read_and_another_request_refused(label, tmp_path):
    first = label(tmp_path)
    for part in tmp_path.glob("part_*"):
        part.unlink()  # the labels stand without the samples behind them
    assert label(tmp_path) == first and len(label.calls) == 1
    with pytest.raises(UserError, match="samples: 4 -> 8"):
        label(tmp_path, samples=8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "4"}, "id has a value"),
        ({"answer": ""}, "answer has a value"),
        ({"majority_fraction": 1.5}, "majority_fraction and pass_rate"),
        ({"pass_rate": "high"}, "majority_fraction and pass_rate"),
        ({"id": 9}, "id 9 comes a second time"),
        ({"votes": None}, "votes has a value"),
    ],
)
def test_a_damaged_line_is_named(label, tmp_path, change, words):
    label(tmp_path)
    records = lines(tmp_path)
    records[2] |= change
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(UserError, match=r"labels\.jsonl line 3 is damaged") as caught:
        read_labels(tmp_path)
    assert words in str(caught.value)


def test_lines_that_are_no_labels_are_named(tmp_path):
    for text, words in (
        ("{", "Expecting"),
        ("[]", "not an object"),
        ('{"id": 1}', "'question' is missing"),
    ):
        (tmp_path / "labels.jsonl").write_text(text + "\n")
        with pytest.raises(UserError, match="line 1 is damaged") as caught:
            read_labels(tmp_path)
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"has no labels\.jsonl"):
        read_labels(tmp_path / "none")


def made(id, pass_rate=None, majority_fraction=0.0, question="?", answer="1"):
    return Label(id, question, answer, majority_fraction, {}, 1, 1, pass_rate)


def test_rows_get_their_labels_and_nothing_else(label, tmp_path):
    labelled = with_labels(ROWS[::-1], label(tmp_path))
    assert [row.label for row in labelled] == [None, "8", "3"]
    assert [replace(row, label=None) for row in labelled] == ROWS[::-1]
    assert [row.label for row in ROWS] == [None] * 3


def test_labels_of_other_rows_are_refused(label, tmp_path):
    found = label(tmp_path)
    strange = [*ROWS, Row(5, "1+1=", (1,))]
    moved = [ROWS[0], replace(ROWS[1], prompt="7-8=")]
    for rows, words in ((strange, "row 5 ('1+1=') has no label"), (moved, "row 9 asks '7-8='")):
        for use in (with_labels, lambda r, x: top_fraction(r, x, "majority_fraction", 1.0)):
            with pytest.raises(UserError) as caught:
                use(rows, found)
            assert words in str(caught.value)


def test_the_top_by_hand():
    rows = [Row(i, "?", (1,)) for i in (5, 1, 4, 2, 3, 0)]
    rates = {0: 0.5, 1: 1.0, 2: 0.5, 3: 0.0, 4: 0.5, 5: 0.9}
    found = {i: made(i, rate, 1 - rate) for i, rate in rates.items()}

    def ids(by, fraction):
        return [row.id for row in top_fraction(rows, found, by, fraction)]

    assert ids("pass_rate", 1 / 3) == [5, 1]
    assert ids("pass_rate", 1 / 2) == [5, 1, 0]  # of three equals the smallest id
    assert ids("majority_fraction", 1 / 3) == [3, 0]
    assert ids("pass_rate", 0.01) == [1]  # one at least
    assert ids("pass_rate", 1.0) == [5, 1, 4, 2, 3, 0]


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30),
    st.floats(0.01, 1),
    st.randoms(use_true_random=False),
)
def test_the_top_is_the_top_in_any_order(rates, fraction, random):
    found = {i: made(i, rate) for i, rate in enumerate(rates)}
    rows = [Row(i, "?", (1,)) for i in range(len(rates))]
    random.shuffle(rows)
    top = top_fraction(rows, found, "pass_rate", fraction)
    kept = {row.id for row in top}
    assert abs(len(top) - fraction * len(rows)) <= 0.5 or len(top) == 1
    assert [row for row in rows if row.id in kept] == top
    worst = min(rates[i] for i in kept)
    assert all(rate <= worst for i, rate in enumerate(rates) if i not in kept)


def test_a_rank_that_is_not_there_and_a_bad_fraction_are_refused(label, tmp_path):
    found = label(tmp_path)
    with pytest.raises(UserError, match="row 9 has no pass rate"):
        top_fraction(ROWS, found, "pass_rate", 0.5)
    assert len(top_fraction(ROWS, found, "majority_fraction", 0.5)) == 2
    for fraction in (0.0, 1.1, -1.0):
        with pytest.raises(UserError, match=f"to keep is {fraction}"):
            top_fraction(ROWS, found, "majority_fraction", fraction)


def test_accuracy_counts_what_has_gold(label, tmp_path):
    found = label(tmp_path)
    # 4 is right, 9 has no gold, 2 has gold and no label.
    assert labels.accuracy(ROWS, found, Equivalence("exact")) == 0.5
    assert labels.accuracy(ROWS[1:2], found, Equivalence("exact")) is None


def test_the_config_says_what_was_asked(label, tmp_path):
    label(tmp_path, told={"checkpoint": "runs/a"})
    config = run_dir.read_config(tmp_path)["config"]
    assert config["kind"] == "labels" and config["samples"] == 4
    assert config["told"] == {"checkpoint": "runs/a"} and config["rows"]["count"] == 3
