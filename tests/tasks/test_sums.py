"""Sums in English: worked by hand, split by pairs, and an answer that is the first number alone."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.paired import with_views
from selfevolve_jax.tasks import sums
from selfevolve_jax.tasks.sums import ANSWER, SumsConfig, load_task, response_tokens

QUESTION = re.compile(r"What is (\d+) (plus|times) (\d+)\?")


def numbers(text):
    return [(int(a), int(b)) for a, _, b in QUESTION.findall(text)]


@pytest.fixture
def task(char_tokenizer):
    return load_task(SumsConfig(), char_tokenizer(), seed=3)


def test_a_prompt_by_hand(char_tokenizer):
    """Three pairs, one of them shown, one asked in training, one held out."""
    config = SumsConfig("multiplication", largest=2, shots=1, held_out_fraction=0.5)
    task = load_task(config, char_tokenizer(), seed=0)
    rows = [*task.train, *task.held_out]
    texts = {(1, 1): "1", (1, 2): "2", (2, 1): "2", (2, 2): "4"}
    (shown,) = {numbers(row.prompt)[0] for row in rows}
    asked = {p for p in texts if sorted(p) != sorted(shown)}
    example = f"Question: What is {shown[0]} times {shown[1]}?\nAnswer: {texts[shown]}\n\n"
    assert {r.prompt: r.gold for r in rows} == {
        f"{example}Question: What is {a} times {b}?\nAnswer:": texts[a, b] for a, b in asked
    }
    assert len(rows) == len(asked)


@pytest.mark.parametrize("operation", ["addition", "multiplication"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_pairs_lie_on_one_side_and_examples_on_none(operation, seed, char_tokenizer):
    config = SumsConfig(operation, largest=9, shots=4, held_out_fraction=0.3)
    task = load_task(config, char_tokenizer(), seed=seed)
    prefixes, asked = set(), {}
    for side in ("train", "held_out"):
        for row in getattr(task, side):
            *shown, last = numbers(row.prompt)
            prefixes.add(tuple(shown))
            asked.setdefault(side, []).append(last)
            a, b = last
            assert row.gold == str(a + b if operation == "addition" else a * b)
            assert row.id == (a - 1) * 9 + b - 1
    (shown,) = prefixes
    sides = [{frozenset(p) for p in found} for found in (*asked.values(), shown)]
    assert len(sides[2]) == 4 and [len(s) for s in sides[:2]] == [29, 12]  # .3 of 41 pairs
    assert not sides[0] & sides[1] and not (sides[0] | sides[1]) & sides[2]
    for found in asked.values():  # both orders, once each
        assert len(set(found)) == len(found) and {p[::-1] for p in found} == set(found)


def test_rows_are_a_function_of_the_seed(task, char_tokenizer):
    again, other = (load_task(SumsConfig(), char_tokenizer(), seed=s) for s in (3, 4))
    assert again.train == task.train and again.held_out == task.held_out
    assert {r.id for r in other.held_out} != {r.id for r in task.held_out}


@pytest.mark.parametrize("operation", ["addition", "multiplication"])
def test_the_other_view_is_the_other_order(operation, char_tokenizer):
    """For every row of both sides: numbers swapped, all else the same; and no gold rides along."""
    task = load_task(SumsConfig(operation), char_tokenizer(), seed=3)
    for rows in (task.train, task.held_out):
        both = with_views(rows)
        assert both[::2] == rows and len(both) == 2 * len(rows)
        by_id = {row.id: row for row in rows}
        for row, view in zip(rows, both[1::2], strict=True):
            *shown, (a, b) = numbers(row.prompt)
            assert numbers(view.prompt) == [*shown, (b, a)]
            assert (view.id, view.gold) == (row.id, row.gold)
            assert view.prompt_tokens == by_id[(b - 1) * 9 + a - 1].prompt_tokens
            pair = row.extra["pair"]
            assert pair.gold is None and not pair.extra
        assert not any(row.hide_gold().extra for row in both)
    assert any(len(set(numbers(row.prompt)[-1])) == 1 for row in task.train)  # 3 plus 3 was there


def test_an_order_that_is_over_long_leaves_the_other_without_a_view(char_tokenizer, monkeypatch):
    """The paired vote then names the row, rather than pairing it with something else."""
    real = sums.tokenize_rows

    def without_first(tokenizer, problems, **options):
        rows, dropped = real(tokenizer, problems, **options)
        return [row for row in rows if row.id != 1], dropped  # 1 plus 2

    monkeypatch.setattr(sums, "tokenize_rows", without_first)
    task = load_task(SumsConfig(shots=0), char_tokenizer(), seed=0)
    (alone,) = (row for row in (*task.train, *task.held_out) if row.id == 9)  # 2 plus 1
    assert numbers(alone.prompt) == [(2, 1)]
    with pytest.raises(UserError, match="row 9 has no rephrased question"):
        with_views([alone])


def test_a_line_ends_a_response(char_tokenizer):
    tokenizer = char_tokenizer()
    newline = tokenizer.get_vocab()["\n"]
    assert load_task(SumsConfig(), tokenizer, 0).stop_tokens == (newline, tokenizer.eos_token_id)
    assert load_task(SumsConfig(), tokenizer, 0, (3,)).stop_tokens[:2] == (3, newline)


def test_an_empty_line_that_is_one_token_ends_a_response_too():
    """The rule of Qwen and Llama 3, under which line ends cling together."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "ĊĊ", "<end>"])}
    inner = Tokenizer(models.BPE(vocab, [("Ċ", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    task = load_task(SumsConfig(), tokenizer, 0)
    assert task.stop_tokens == (vocab["Ċ"], vocab["ĊĊ"], vocab["<end>"])


@pytest.mark.parametrize(
    ("operation", "largest", "longest"), [("addition", 9, 4), ("multiplication", 12, 5)]
)
def test_the_longest_response(operation, largest, longest):
    """A blank, 18 or 144, and the line's end."""
    assert response_tokens(SumsConfig(operation, largest)) == longest


def test_a_special_first_token_comes_once(char_tokenizer):
    tokenizer = char_tokenizer(adds="{bos} $A")
    for row in load_task(SumsConfig(), tokenizer, 0).train:
        assert row.prompt_tokens[0] == tokenizer.bos_token_id
        assert tokenizer.decode(row.prompt_tokens[1:]) == row.prompt


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" 7\n", "7"),
        ("7", "7"),
        (" 12.", "12"),
        (" 12 apples and 4 pears", "12"),
        ("  007\n", "7"),
        (" 0\n", "0"),
        (" 00\n", "0"),
        (" 7\nWhat is 3 plus 5? 8", "7"),
        (" 7, 8", "7"),
        (" 7.5\n", None),
        (" 7,000\n", None),
        (" 3/4\n", None),
        (" 12:30", None),
        (" -7\n", None),
        (" seven, or 7\n", None),
        (" 3 + 4 = 7\n", "3"),
        ("\n7", None),
        ("", None),
    ],
)
def test_the_answer_is_the_number_that_a_response_begins_with(response, answer):
    assert extract(response, ANSWER.pattern) == answer


@given(st.integers(0, 999), st.text("0123456789 .,/:\nab", max_size=12))
def test_what_follows_is_never_the_answer(number, after):
    """Read by a plain loop over the characters."""
    text = f" {number}{after}"
    read = ""
    for char in text.lstrip(" "):
        if not char.isdigit():
            break
        read += char
    rest = text.lstrip(" ")[len(read) :]
    goes_on = rest[:1] in (".", ",", "/", ":") and rest[1:2].isdigit() and rest[:1] != ""
    assert extract(text, ANSWER.pattern) == (None if goes_on else str(int(read)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"largest": 1}, "task.largest=1"),
        ({"held_out_fraction": 0.0}, "task.held_out_fraction=0.0"),
        ({"held_out_fraction": 1.0}, "task.held_out_fraction=1.0"),
        ({"shots": -1}, "task.shots=-1"),
        ({"largest": 2, "shots": 2}, "task.shots=2 must be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        SumsConfig(**options)
