"""Scores worked out by hand from fixed samples, and what reaches the rollout engine."""

import jax
import numpy as np
import pytest

from selfevolve_jax import evaluate
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.rollout.engine import RolloutConfig, Samples
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.base import Row, Task

TEXT = arithmetic.tokenizer()


def encode(text):
    return TEXT.encode(text, add_special_tokens=False)


def samples_of(texts, width=6):
    """Samples as the engine returns them; the tail beyond a length is filled with the end mark, so
    that reading it would change an answer."""
    R, G = len(texts), len(texts[0])
    tokens = np.full((R, G, width), encode(".")[0], np.int32)
    lengths = np.zeros((R, G), np.int32)
    for r, g in np.ndindex(R, G):
        ids = encode(texts[r][g]) if texts[r][g] else []
        tokens[r, g, : len(ids)], lengths[r, g] = ids, len(ids)
    return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)


def row(id, prompt, gold):
    return Row(id, prompt, tuple(encode(prompt)), gold)


ROWS = [row(4, "1+2=", "3"), row(9, "5*5=", "5"), row(2, "7-9=", "8"), row(7, "0+0=", "0")]
SAMPLED = [
    ["3.", "3.", "4.", "3"],  # 2 right of 4 (the last has no end mark); the vote is right
    ["5.", "6.", "6.", "1."],  # 1 right; the vote is wrong
    ["18.", "8.", "1.", "1."],  # 2 right; tied two to two, the first seen wins: right
    ["", "+.", "0", "=0"],  # none can be read: no vote
]
GREEDY = [["3."], ["6."], ["8."], ["0"]]


@pytest.fixture
def scored(monkeypatch, mesh1, tiny):
    calls = []

    def generate(params, prompts, row_ids, n, key, sampling, **rest):
        calls.append((params, prompts, row_ids, n, key, sampling, rest))
        return samples_of(SAMPLED if sampling.temperature > 0 else GREEDY)

    monkeypatch.setattr(evaluate, "generate", generate)
    task = Task("t", [], ROWS, TEXT, (15,), arithmetic.ANSWER)
    scores = evaluate.score(
        "params",
        tiny,
        task,
        ROWS,
        Equivalence("exact"),
        k=4,
        key=jax.random.key(1),
        sampling=Sampling(temperature=0.6, top_p=0.9),
        max_new_tokens=6,
        mesh=mesh1,
        rollout=RolloutConfig(8, 4),
    )
    return scores, calls


def test_mean_majority_and_greedy_by_hand(scored):
    scores, _ = scored
    assert scores.metrics() == {"mean": 5 / 16, "majority": 2 / 4, "greedy": 2 / 4}
    assert scores.grades.correct_RxG.sum(axis=1).tolist() == [2, 1, 2, 0]
    assert scores.grades.majority_correct_R.tolist() == [True, False, True, False]
    assert scores.texts == SAMPLED


def test_the_engine_is_asked_for_k_samples_and_one_greedy_text(scored, mesh1, tiny):
    _, calls = scored
    assert [(c[3], c[5]) for c in calls] == [
        (4, Sampling(temperature=0.6, top_p=0.9)),
        (1, Sampling(temperature=0.0)),
    ]
    for params, prompts, row_ids, _, _, _, rest in calls:
        assert params == "params" and list(row_ids) == [4, 9, 2, 7]
        assert [tuple(p) for p in prompts] == [r.prompt_tokens for r in ROWS]
        assert rest == {
            "max_new_tokens": 6,
            "stop_tokens": (15,),
            "cfg": tiny,
            "mesh": mesh1,
            "config": RolloutConfig(8, 4),
            "images": None,
        }


def test_decode_keeps_groups_lengths_and_an_end_mark_that_is_text():
    texts = [["743.", "1"], ["", "9.9."]]
    assert evaluate.decode(TEXT, samples_of(texts)) == texts


def test_decode_drops_special_tokens():
    """A chat model's end of turn is special and no part of the text; so is padding."""
    text = arithmetic.tokenizer()
    text.add_special_tokens({"eos_token": "<end>"})
    tokens = np.array([[[8, 5, text.eos_token_id, 0]]], np.int32)
    ones = np.ones((1, 1), np.int32)
    drawn = Samples(tokens, np.zeros(tokens.shape, np.float32), 3 * ones, ones > 0)
    assert evaluate.decode(text, drawn) == [["74"]]
