"""Figures by hand from fixed samples; killed and asked again, the same bytes."""

import json

import jax.numpy as jnp
import pytest

from selfevolve_jax import bootstrap, evaluate, sampling_job
from selfevolve_jax.benchmark import benchmark
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.base import Row, Task
from tests.drawn import TEXT, samples_of

ROWS = [
    Row(id, prompt, (1, 2), gold)
    for id, prompt, gold in ((4, "1+2=", "3"), (9, "5*5=", "5"), (2, "7-9=", "8"), (7, "0+0=", "0"))
]
SAMPLED = {
    4: ["3.", "3.", "4.", "3"],  # 2 of 4 right, and the vote
    9: ["5.", "6.", "6.", "1."],  # 1 right; the vote is wrong
    2: ["18.", "8.", "1.", "1."],  # 2 right; tied, the first seen wins: right
    7: ["", "+.", "0", "=0"],  # nothing to read
}
GREEDY = {4: "3.", 9: "6.", 2: "8.", 7: "0"}


@pytest.fixture
def run(monkeypatch, tiny, mesh1):
    calls = []

    def generate(params, prompts, row_ids, n, *_, **__):
        calls.append(n)
        if len(calls) == run.dies_at:
            raise KeyboardInterrupt
        return samples_of([SAMPLED[i] if n > 1 else [GREEDY[i]] for i in row_ids])

    def run(folder=None, rows=ROWS, **changes):
        return benchmark(
            {"w": jnp.ones(2)},
            tiny,
            Task("t", [], rows, TEXT, (15,), arithmetic.ANSWER),
            rows,
            folder,
            mesh=mesh1,
            rollout=RolloutConfig(8, 4),
            sampling=Sampling(),
            max_new_tokens=6,
            **({"k": 4, "seed": 0} | changes),
        )

    run.dies_at, run.calls = None, calls
    monkeypatch.setattr(evaluate, "generate", generate)
    return run


def test_figures_by_hand(run):
    summary = run(pass_at=(2, 1))
    # pass@2: problems with 2, 1, 2 and 0 right of 4: 1 − 1/6, 1 − 3/6, 1 − 1/6, 0.
    assert summary["figures"] == pytest.approx(
        {
            "avg@4": 5 / 16,
            "maj@4": 2 / 4,
            "pass@1": 5 / 16,
            "pass@2": (5 / 6 + 1 / 2 + 5 / 6) / 4,
            "pass@4": 3 / 4,
            "greedy": 2 / 4,
        }
    )
    assert list(summary["figures"]) == list(summary["intervals"])
    assert (summary["problems"], summary["samples"]) == (4, 4)


def test_intervals_are_over_problems(run):
    intervals = run()["intervals"]
    by_problem = {"avg@4": [2 / 4, 1 / 4, 2 / 4, 0], "greedy": [1, 0, 1, 0], "maj@4": [1, 0, 1, 0]}
    for name, values in by_problem.items():
        expected = bootstrap.intervals([[v] for v in values], 0)[0]
        assert intervals[name] == pytest.approx(expected.tolist())
    assert intervals["greedy"] == [0, 1]


@pytest.mark.parametrize("dies_at", [2, 3, 4])
def test_killed_and_asked_again_it_gives_the_same_bytes(run, tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 8)
    summary = run(tmp_path / "whole", pass_at=(2,))
    run.dies_at = len(run.calls) + dies_at
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", pass_at=(2,))
    assert not (tmp_path / "killed" / "summary.json").exists()
    run.dies_at, before = None, len(run.calls)
    assert run(tmp_path / "killed", pass_at=(2,)) == summary
    assert len(run.calls) - before == 4 - 2 * ((dies_at - 1) // 2)
    for name in ("summary.json", "part_00000.jsonl", "part_00001.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((tmp_path / "whole" / "summary.json").read_text()) == summary


def test_other_figures_may_be_asked_of_the_same_samples(run, tmp_path):
    run(tmp_path)
    summary = run(tmp_path, pass_at=(3,))
    assert run.calls == [4, 1] and "pass@3" in summary["figures"]


def test_with_and_without_a_folder_it_says_the_same(run, tmp_path):
    assert run(tmp_path) == run()


def test_rows_without_gold_and_impossible_figures_are_refused_at_once(run):
    with pytest.raises(UserError, match=r"row 5 \('1\+1='\) has no gold"):
        run(rows=[*ROWS, Row(5, "1+1=", (1,), " ")])
    with pytest.raises(UserError, match="pass@5"):
        run(pass_at=(5,))
    assert run.calls == []
