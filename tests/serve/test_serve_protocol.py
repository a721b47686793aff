"""Requests: what is refused, what is ignored, and what the others ask for."""

import json

import pytest

from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.serve.chat import chat_tokens, text_tokens
from selfevolve_jax.serve.protocol import Refused, check_length, parse
from selfevolve_jax.tasks import arithmetic
from tests import seeing

USER = [{"role": "user", "content": "Hi"}]


def asked(chat=True, **body):
    body = ({"messages": USER} if chat else {"prompt": "Hi"}) | body
    return parse(body, chat=chat, model="m")


def test_defaults_are_openais():
    got = asked()
    assert (got.n, got.sampling, got.stop, got.logprobs) == (
        1,
        Sampling(1.0, 1.0, 0, 0.0),
        (),
        None,
    )
    assert (got.max_tokens, got.stream, got.tools) == (None, False, ())
    assert asked(chat=False).max_tokens == 16
    # Without a seed every request has its own.
    assert asked().seed != asked().seed


def test_null_is_as_if_left_out_and_the_unknown_is_ignored():
    null = dict.fromkeys(
        ("n", "temperature", "stop", "max_tokens", "logprobs", "tools", "stream_options", "echo")
    )
    got = asked(model=None, seed=1, user="me", store=True, min_tokens=3, whatever=[1], **null)
    assert got == asked(seed=1)


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, "max_tokens", 7),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": ["x", "yz"]}, "stop", ("x", "yz")),
        ({"seed": -1}, "seed", 2**32 - 1),
        ({"seed": 2**40 + 3}, "seed", 3),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ({"top_logprobs": 0}, "logprobs", None),
        ({"top_k": -1}, "sampling", Sampling(1.0, 1.0, 0, 0.0)),
        (
            {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1},
            "sampling",
            Sampling(0.0, 0.5, 3, 0.1),
        ),
        ({"frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1}, "n", 1),
        ({"stream": True, "stream_options": {"include_usage": True}}, "include_usage", True),
    ],
)
def test_what_is_asked_for(body, field, value):
    assert getattr(asked(**body), field) == value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1}, "min_p"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": ["x"]}, "tools"),
        ({"tools": {}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"best_of": 3}, "best_of"),
        ({"model": 3}, "model"),
    ],
    ids=str,
)
def test_the_ill_typed_and_what_cannot_be_done_is_refused_by_name(body, param):
    with pytest.raises(Refused) as caught:
        asked(**body)
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert param in caught.value.message
    json.dumps(caught.value.body())


@pytest.mark.parametrize(
    "prompt", [None, 3, [], [[]], [[1], "a"], ["a", 1], [True], [1.5], ["a"] * 129, {}], ids=str
)
def test_prompts_of_other_kinds_are_refused(prompt):
    if prompt == [[]]:  # a list of tokens without any: found with the lengths
        assert asked(chat=False, prompt=prompt).prompt == [[]]
        return
    with pytest.raises(Refused, match="prompt"):
        asked(chat=False, prompt=prompt)


def test_prompts_of_all_four_kinds():
    kinds = {"a": ["a"], ("a", "b"): ["a", "b"], (1, 2): [[1, 2]], ((1,), (2, 3)): [(1,), (2, 3)]}
    for prompt, want in kinds.items():
        prompt = json.loads(json.dumps(prompt))
        assert asked(chat=False, prompt=prompt).prompt == json.loads(json.dumps(want))


def test_echo_and_suffix_are_refused_and_another_model_is_not_found():
    for body in ({"echo": True}, {"suffix": "x"}):
        with pytest.raises(Refused, match="not supported"):
            asked(chat=False, **body)
    with pytest.raises(Refused) as caught:
        asked(model="other")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_lengths_are_told():
    assert check_length(3, None, 8) == 5 and check_length(3, 5, 8) == 5
    for prompt, answer, total in ((3, 6, 9), (8, None, 9), (20, 1, 21)):
        with pytest.raises(Refused, match=rf"is 8 tokens.*{total} tokens \({prompt} in") as caught:
            check_length(prompt, answer, 8)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(Refused, match="empty"):
        check_length(0, 5, 8)


# --- messages ------------------------------------------------------------------------------------

TEXT = seeing.tokenizer()
TOOLS = seeing.tokenizer(
    "{% if tools %}{{ tools | tojson }};{% endif %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{% endfor %};"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_messages_become_the_templates_text():
    want = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": parts}]
        assert chat_tokens(TEXT, messages) == TEXT.encode(want)


def test_calls_and_their_results_go_through_the_template():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 17}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    text = TOOLS.decode(chat_tokens(TOOLS, messages, tools))
    head = '[{"type": "function", "function": {"name": "f"}}];'
    assert text == head + "user: Hi;assistant: 17;tool: 42;assistant: "
    with pytest.raises(Refused, match="takes no tools"):
        chat_tokens(TEXT, USER, tools)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages must be a list"),
        ([], "at least one"),
        (["Hi"], r"messages\[0\]"),
        ([{"role": "robot", "content": "x"}], "whose role is one of"),
        ([*USER, {"role": "user"}], r"messages\[1\].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "no text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "without a string"),
        ([{"role": "user", "content": "\ud800"}], "no Unicode"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], "tool_calls"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "JSON object",
        ),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "of the assistant"),
    ],
)
def test_other_messages_are_refused(messages, said):
    with pytest.raises(Refused, match=said):
        chat_tokens(TEXT, messages)


def test_a_template_may_refuse_and_may_lack():
    with pytest.raises(Refused, match="refuses this: no system"):
        chat_tokens(seeing.tokenizer("{{ raise_exception('no system') }}"), USER)
    with pytest.raises(Refused, match="no chat template"):
        chat_tokens(seeing.tokenizer(None), USER)


def test_a_plain_text_gets_what_the_tokenizer_puts_before_one_and_no_unknown_token():
    assert text_tokens(TEXT, "é") == TEXT.encode("é")
    own = arithmetic.tokenizer()
    with pytest.raises(Refused, match="does not know"):
        text_tokens(own, "what?")
