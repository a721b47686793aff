"""The text of a served answer: stop strings, tool calls, and how it is shown as it comes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.serve.text import Answer, parse_calls
from tests import seeing

TEXT = seeing.tokenizer()
EXAMPLES = settings(max_examples=200)


def pieces(draw, tokens):
    out = []
    while tokens:
        n = draw(st.integers(1, 9))
        out.append(tokens[:n])
        tokens = tokens[n:]
    return out


def follow(chunks, ended, stops=(), tools=False):
    """(what was shown after each chunk, the answer). Nothing is fed after it finished."""
    answer, shown = Answer(TEXT, stops, tools), [""]
    for i, chunk in enumerate(chunks):
        last = i == len(chunks) - 1
        shown.append(shown[-1] + answer.feed(chunk, ended if last else ""))
        if answer.finish:
            break
    return shown[1:], answer


@EXAMPLES
@given(data=st.data())
def test_pieces_change_nothing_and_what_is_shown_stays(data):
    """Against the text cut by hand: at the first stop string of the shortest text that holds one."""
    text = data.draw(st.text(st.sampled_from("ab é€\n<"), max_size=24))
    stops = data.draw(
        st.lists(st.text(st.sampled_from("ab é<"), min_size=1, max_size=3), max_size=2)
    )
    tokens = TEXT.encode(text)
    if not tokens:
        return
    shown, answer = follow(pieces(data.draw, tokens), "length", tuple(stops))
    want, finish, n = text, "length", len(tokens)
    for end in range(len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            want, finish, n = text[: min(found)], "stop", len(text[:end].encode())
            break
    assert (answer.content, answer.finish, answer.tokens) == (want, finish, tokens[:n])
    assert shown[-1] == want
    assert all(want.startswith(part) for part in shown)


@EXAMPLES
@given(data=st.data())
def test_bytes_that_are_no_text_are_shown_as_the_whole_is(data):
    """A sampled model may write any, and half a character is only settled at the end."""
    tokens = data.draw(st.lists(st.integers(3, len(TEXT) - 1), min_size=1, max_size=24))
    whole = TEXT.decode(tokens, skip_special_tokens=True)
    shown, answer = follow(
        pieces(data.draw, tokens), data.draw(st.sampled_from(("stop", "length")))
    )
    assert shown[-1] == answer.text == whole and answer.tokens == tokens
    assert all(whole.startswith(part) for part in shown)


def test_a_possible_stop_string_is_held_back_and_no_more():
    answer = Answer(TEXT, ("END",))
    assert answer.feed(TEXT.encode("one E")) == "one "
    assert answer.feed(TEXT.encode("N")) == ""
    assert answer.feed(TEXT.encode("E")) == "EN"  # the last E may begin another
    assert answer.feed(TEXT.encode("NDmore")) == ""
    assert (answer.finish, answer.text) == ("stop", "one EN")
    assert answer.tokens == TEXT.encode("one ENEND")


def test_the_stop_token_is_counted_and_has_no_text():
    answer = Answer(TEXT, ("x",))
    assert answer.feed([*TEXT.encode("ok"), seeing.TURN_END], "stop") == "ok"
    assert (answer.finish, answer.text, len(answer.tokens)) == ("stop", "ok", 3)


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CALLS = {
    call("f", a=1): ("", [("f", {"a": 1})]),
    "I add. \n" + call("add", a=1, b="é"): ("I add.", [("add", {"a": 1, "b": "é"})]),
    call("f") + "\n" + call("g", x=[1]): ("", [("f", {}), ("g", {"x": [1]})]),
    "one " + call("f") + " two " + call("g") + " three": (
        "one\ntwo\nthree",
        [("f", {}), ("g", {})],
    ),
    call("f", text="a </tool_call> b <tool_call>"): (
        "",
        [("f", {"text": "a </tool_call> b <tool_call>"})],
    ),
    '<tool_call>{"name": "f"}': ("", [("f", {})]),
}
NO_CALLS = (
    "plain text \n",
    "<tool_call>",
    '<tool_call>{"name": "f", "arguments": {',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "a"}</tool_call>',
    '<tool_call>["f"]</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "f"} and more',
    call("f") + "<tool_call>{oops}</tool_call>",
    "<tool_call>" + "[" * 100_000,
)


@pytest.mark.parametrize("text", CALLS)
def test_calls_are_read_out_of_the_text(text):
    content, calls = parse_calls(text)
    assert (content, [(c["name"], json.loads(c["arguments"])) for c in calls]) == CALLS[text]


@pytest.mark.parametrize("text", NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_is_no_call_is_text(text):
    assert parse_calls(text) == (text, [])


@EXAMPLES
@given(data=st.data())
def test_with_tools_the_stream_adds_up_to_the_content(data):
    text = data.draw(st.sampled_from([*CALLS, *NO_CALLS[:-1], "a < b <tool", "  \n x"]))
    shown, answer = follow(pieces(data.draw, TEXT.encode(text)), "stop", tools=True)
    content, calls = parse_calls(text)
    assert (shown[-1], answer.calls) == (content, calls)
    assert all(content.startswith(part) for part in shown)
    assert not calls or all("<" not in part for part in shown)
