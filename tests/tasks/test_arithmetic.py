"""Chained arithmetic: worked by hand, disjoint, deterministic, with the noise it states."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig, load_task, noisy_examples, solve

SMALL = ArithmeticConfig(numbers=(3, 5), train_rows=60, held_out_rows=31)


@pytest.fixture(scope="module")
def task():
    return load_task(SMALL, seed=3)


@pytest.mark.parametrize(
    ("chain", "replaced", "response"),
    [
        ("3+4*2-1*7=", None, "7431"),
        ("3+4*2-1*7", None, "7431"),
        ("0-1=", None, "9"),
        ("9*9*9*9=", None, "191"),
        ("2-9-9=", None, "34"),
        # The second result becomes 0; the rest goes on from it: 0-1=9, 9*7=63.
        ("3+4*2-1*7=", [None, 0, None, None], "7093"),
        ("3+4*2-1*7=", [9, None, None, 5], "9875"),
        ("3+4=", [8], "8"),
        ("3+4*2-1*7=", [None] * 4, "7431"),
    ],
)
def test_solve_by_hand(chain, replaced, response):
    assert solve(chain, replaced) == response


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_a_chain_has_its_numbers_and_every_result_follows_from_the_one_before(seed, numbers):
    chain = arithmetic.draw_chain(np.random.default_rng(seed), numbers)
    assert re.fullmatch(rf"\d([-+*]\d){{{numbers - 1}}}=", chain)
    results = solve(chain)
    assert len(results) == numbers - 1
    left = chain[0]
    for step, result in zip(re.findall(r"[-+*]\d", chain), results, strict=True):
        assert eval(left + step) % 10 == int(result)
        left = result


def test_gold_is_what_the_answer_pattern_reads_from_a_right_response(task):
    for row in [*task.train, *task.held_out]:
        assert row.gold == extract(solve(row.prompt) + arithmetic.END, task.answer.pattern)
        assert row.gold == solve(row.prompt)[-1]
    assert extract("743", task.answer.pattern) is None  # cut off before the end mark


def test_no_prompt_comes_twice_and_lengths_take_turns(task):
    prompts = [row.prompt for row in [*task.held_out, *task.train]]
    assert len(set(prompts)) == len(prompts) == 91
    ids = [row.id for row in [*task.held_out, *task.train]]
    assert len(set(ids)) == 91
    for rows in (task.train, task.held_out):
        assert [len(row.prompt) for row in rows] == [6, 10] * (len(rows) // 2) + [6] * (
            len(rows) % 2
        )


def test_disjoint_also_where_the_space_is_nearly_full():
    """150 of the 300 chains of two numbers: independent draws would surely collide."""
    task = load_task(ArithmeticConfig(numbers=(2,), train_rows=100, held_out_rows=50), seed=0)
    assert len({row.prompt for row in [*task.train, *task.held_out]}) == 150


def test_rows_are_a_function_of_the_seed(task):
    again, other = load_task(SMALL, seed=3), load_task(SMALL, seed=4)
    assert again.train == task.train and again.held_out == task.held_out
    assert {r.prompt for r in other.held_out} != {r.prompt for r in task.held_out}
    assert {r.prompt for r in other.train} != {r.prompt for r in task.train}


def test_held_out_rows_do_not_change_with_the_number_of_train_rows(task):
    more = load_task(ArithmeticConfig(numbers=(3, 5), train_rows=200, held_out_rows=31), seed=3)
    assert more.held_out == task.held_out
    assert more.train[:60] == task.train


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            ArithmeticConfig(numbers=(2,), train_rows=101, held_out_rows=50),
            "300 different chains of 2 numbers.*151 rows.*150",
        ),
        # Half of the rows are of the short length: a total over both lengths would never end.
        (
            ArithmeticConfig(numbers=(2, 8), train_rows=200, held_out_rows=110),
            "300 different chains of 2 numbers",
        ),
        (
            ArithmeticConfig(numbers=(2, 2), train_rows=101, held_out_rows=50),
            "300 different chains of 2 numbers.*151 rows",
        ),
    ],
)
def test_more_rows_than_chains_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        load_task(config, seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"numbers": (1,)}, "task.numbers"),
        ({"numbers": ()}, "task.numbers"),
        ({"numbers": (5, 1)}, "task.numbers"),
        ({"train_rows": 0}, "task.train_rows=0"),
        ({"held_out_rows": 0}, "task.held_out_rows=0"),
    ],
)
def test_bad_settings_are_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        ArithmeticConfig(**options)


def test_one_token_a_character_and_back(task):
    text = task.tokenizer
    alphabet = "0123456789+-*=."
    tokens = text.encode(alphabet, add_special_tokens=False)
    assert tokens == list(range(1, 16))
    assert text.batch_decode([tokens], skip_special_tokens=True) == [alphabet]
    for row in task.held_out:
        assert len(row.prompt_tokens) == len(row.prompt)
        assert text.decode(row.prompt_tokens, skip_special_tokens=True) == row.prompt
    assert task.stop_tokens == (15,) and text.decode([15], skip_special_tokens=True) == "."
    assert text.pad_token_id == 0 and text.decode([0, 3, 0], skip_special_tokens=True) == "2"


def final_right(noise, steps):
    """P(the last result is right), exactly: the error (written − true) mod 10 is a Markov chain. A
    sum or difference keeps it; a product by a uniform digit maps it; noise makes it uniform."""
    product = np.zeros((10, 10))
    for d in range(10):
        for c in range(10):
            product[d, d * c % 10] += 0.1
    move = (1 - noise) * (2 / 3 * np.eye(10) + 1 / 3 * product) + noise / 10
    return np.linalg.matrix_power(move, steps)[0, 0]


@pytest.mark.parametrize(("noise", "numbers"), [(0.2, 5), (0.25, 4), (0.8, 3)])
def test_noise_rate(noise, numbers):
    n = 6000
    pairs = noisy_examples(np.random.default_rng(0), [numbers], noise, n, set())
    assert len(pairs) == n and all(r[-1] == "." and len(r) == numbers for _, r in pairs)
    # A step is wrong given the result before it when it is replaced, nine times in ten by another
    # digit; so all are right with (1 − .9 noise)^steps, and the last one a little more often.
    whole = np.mean([solve(p) + "." == r for p, r in pairs])
    last = np.mean([solve(p)[-1] == r[-2] for p, r in pairs])
    steps = numbers - 1
    for got, want in [
        (whole, (1 - 0.9 * noise) ** steps),
        (last, final_right(noise, steps)),
    ]:
        assert abs(got - want) < 4 * (want * (1 - want) / n) ** 0.5
    assert whole < last


def test_no_noise_is_right_and_lengths_take_turns():
    pairs = noisy_examples(np.random.default_rng(1), [3, 4], 0.0, 50, set())
    assert all(solve(p) + "." == r for p, r in pairs)
    assert [len(p) for p, _ in pairs] == [6, 8] * 25


def test_prompts_to_avoid_never_come():
    rng = np.random.default_rng(0)
    seen = {p for p, _ in noisy_examples(rng, [2], 0.1, 2000, set())}
    avoid = set(sorted(seen)[::2])
    assert len(seen) > 280
    got = {p for p, _ in noisy_examples(rng, [2], 0.1, 2000, avoid)}
    assert not got & avoid and len(got) > 100


def test_a_width_pads_prompts_and_spaces_results():
    config = ArithmeticConfig(numbers=(2, 4), width=5, train_rows=20, held_out_rows=10)
    task = load_task(config, seed=0)
    assert arithmetic.layout("3+4*2=", "74", 5) == ("3+4*2=====", "7=4.")
    for row in [*task.train, *task.held_out]:
        chain = row.prompt.rstrip("=") + "="
        prompt, response = arithmetic.layout(chain, solve(chain), 5)
        assert row.prompt == prompt and len(prompt) == len(row.prompt_tokens) == 10
        assert row.gold == extract(response, task.answer.pattern)
        assert len(response) == {4: 2, 8: 6}[len(chain)]
    assert arithmetic.response_tokens(config) == 6
    assert arithmetic.response_tokens(SMALL) == 5
    # Padded prompts are what is avoided, and what is given.
    rng = np.random.default_rng(0)
    avoid = {row.prompt for row in task.held_out}
    pairs = noisy_examples(rng, [2], 0.0, 2000, avoid, width=5)
    assert not {p for p, _ in pairs} & avoid
    assert all(len(p) == 10 and r == solve(p.rstrip("=") + "=") + "." for p, r in pairs)
    with pytest.raises(UserError, match=r"task\.width=3"):
        ArithmeticConfig(numbers=(4,), width=3)
