"""Prompts: suffix, templates, special tokens and the length limit, on tokenizers built here."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks import prompts
from selfevolve_jax.tasks.prompts import Problem, render_prompt, stop_tokens, tokenize_rows

BOS, EOS, TURN = 1, 2, 3  # of char_tokenizer, see conftest.py
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def one(tokenizer, question, **options):
    (row,), dropped = tokenize_rows(tokenizer, [Problem(4, question, "g")], name="d", **options)
    assert dropped == 0
    return row


def chars(tokenizer, text):
    return tuple(tokenizer.convert_tokens_to_ids(list(text)))


def test_plain_prompt_is_question_then_suffix():
    assert render_prompt(None, "1+1?", suffix="\nGo.") == "1+1?\nGo."
    assert render_prompt(None, "1+1?") == "1+1?"


def test_chat_prompt_has_the_suffix_inside_the_user_turn(char_tokenizer):
    tokenizer = char_tokenizer(TEMPLATE)
    made = render_prompt(tokenizer, "1+1?", suffix=" Go.", chat=True, system="Be brief")
    assert made == "[system]Be brief<turn>[user]1+1? Go.<turn>[assistant]"
    assert render_prompt(tokenizer, "x", chat=True) == "[user]x<turn>[assistant]"


def test_missing_template_names_the_option(char_tokenizer):
    with pytest.raises(UserError, match=r"no chat template.*--task\.no-chat"):
        render_prompt(char_tokenizer(), "x", chat=True)


def test_system_without_chat_is_not_dropped_in_silence(char_tokenizer):
    with pytest.raises(UserError, match="system='Be brief' needs"):
        render_prompt(char_tokenizer(TEMPLATE), "x", system="Be brief")


def test_a_template_that_refuses_a_system_turn_says_so(char_tokenizer):
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"System role not supported.*--task\.system"):
        render_prompt(char_tokenizer(strict), "x", chat=True, system="s")


def test_plain_text_gets_bos_and_no_eos(char_tokenizer):
    tokenizer = char_tokenizer()
    row = one(tokenizer, "ab")
    assert row.prompt_tokens == (BOS, *chars(tokenizer, "ab"))
    assert (row.id, row.prompt, row.gold) == (4, "ab", "g")


def test_a_declared_bos_that_the_tokenizer_does_not_add_is_not_added(char_tokenizer):
    tokenizer = char_tokenizer(adds="$A {eos}")
    assert one(tokenizer, "ab").prompt_tokens == chars(tokenizer, "ab")


def test_bos_survives_where_it_is_also_the_eos(char_tokenizer):
    tokenizer = char_tokenizer(adds="{bos} $A", bos="</s>")
    assert one(tokenizer, "ab").prompt_tokens == (EOS, *chars(tokenizer, "ab"))


@pytest.mark.parametrize("template", ["{{ bos_token }}" + TEMPLATE, "<s>" + TEMPLATE])
def test_a_template_that_writes_bos_gets_no_second_one(char_tokenizer, template):
    row = one(char_tokenizer(template), "ab", chat=True)
    assert row.prompt_tokens[0] == BOS and row.prompt_tokens.count(BOS) == 1
    assert EOS not in row.prompt_tokens


def test_a_template_without_bos_gets_none(char_tokenizer):
    assert BOS not in one(char_tokenizer(TEMPLATE), "ab", chat=True).prompt_tokens


def test_plain_text_that_starts_with_bos_gets_no_second_one(char_tokenizer):
    tokenizer = char_tokenizer()
    assert one(tokenizer, "<s>ab").prompt_tokens == (BOS, *chars(tokenizer, "ab"))


def test_over_long_prompts_are_left_out_and_counted_and_never_cut(char_tokenizer):
    tokenizer = char_tokenizer()
    problems = [Problem(i, "x" * n, extra={"n": n}) for i, n in enumerate([3, 9, 4, 5, 20])]
    rows, dropped = tokenize_rows(tokenizer, problems, name="d", max_prompt_tokens=5)
    # BOS counts: 4 characters are 5 tokens.
    assert [(row.id, len(row.prompt_tokens)) for row in rows] == [(0, 4), (2, 5)]
    assert dropped == 3 and rows[1].extra == {"n": 4} and rows[1].gold is None


def test_the_limit_counts_the_suffix(char_tokenizer):
    problems = [Problem(0, "xx"), Problem(1, "x")]
    rows, dropped = tokenize_rows(
        char_tokenizer(), problems, name="d", suffix="abc", max_prompt_tokens=5
    )
    assert [row.id for row in rows] == [1] and dropped == 1


def test_nothing_left_names_limit_and_shortest(char_tokenizer):
    problems = [Problem(0, "x" * 30), Problem(1, "x" * 11)]
    with pytest.raises(UserError, match=r"mine.*all 2 .*max_prompt_tokens=5 .*shortest has 12 "):
        tokenize_rows(char_tokenizer(), problems, name="mine", max_prompt_tokens=5)


def test_no_problems_make_no_rows(char_tokenizer):
    assert tokenize_rows(char_tokenizer(), [], name="d") == ([], 0)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30)


@settings(max_examples=50)
@given(questions=st.lists(TEXT, min_size=1, max_size=5), limit=st.integers(1, 40))
def test_kept_and_dropped_add_up_and_kept_tokens_spell_the_prompt(char_tokenizer, questions, limit):
    tokenizer = char_tokenizer()
    problems = [Problem(i, q) for i, q in enumerate(questions)]
    fits = [i for i, q in enumerate(questions) if 1 + len(q) <= limit]
    if not fits:
        with pytest.raises(UserError):
            tokenize_rows(tokenizer, problems, name="d", max_prompt_tokens=limit)
        return
    rows, dropped = tokenize_rows(tokenizer, problems, name="d", max_prompt_tokens=limit)
    assert [row.id for row in rows] == fits and dropped == len(questions) - len(fits)
    for row in rows:
        assert tokenizer.decode(row.prompt_tokens, skip_special_tokens=True) == row.prompt


def test_stop_tokens_are_eos_and_with_chat_the_end_of_turn(char_tokenizer):
    assert stop_tokens(char_tokenizer(TEMPLATE)) == (EOS,)
    assert stop_tokens(char_tokenizer(TEMPLATE), chat=True) == (EOS, TURN)
    assert stop_tokens(char_tokenizer(TEMPLATE, eos="<turn>", adds="$A"), chat=True) == (TURN,)


def test_a_template_that_ends_turns_in_ordinary_text_adds_no_stop_token(char_tokenizer):
    plain = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert stop_tokens(char_tokenizer(plain), chat=True) == (EOS,)
    drops_answers = "{{ bos_token }}{{ messages[0].content }}<turn>"
    assert stop_tokens(char_tokenizer(drops_answers), chat=True) == (EOS,)


def test_no_way_to_end_a_response_is_refused(char_tokenizer):
    tokenizer = char_tokenizer(adds="$A")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        stop_tokens(tokenizer)


def test_the_papers_suffix():
    # Section 4 of the paper, by way of notes/srt.md.
    assert prompts.BOXED_SUFFIX.strip() == (
        r"Let's think step by step and output the final answer within \boxed{}."
    )
