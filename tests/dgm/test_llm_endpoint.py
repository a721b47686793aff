"""One model behind an endpoint, against a real server that plays every fault."""

import datetime
import email.utils
import math
import sys

import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.llm import endpoint
from selfevolve_jax.llm.config import ModelConfig
from selfevolve_jax.llm.endpoint import Down, Endpoint, Misplaced, Refused
from tests.openai_server import FAULTS, Fault, OpenAIServer

KEY = "sk-very-secret-1"
SAID = {"messages": [{"role": "user", "content": "one two three"}]}
# fault -> (what is raised, or None; requests that the server saw, of 3 tries; whether it is doubtful)
OUTCOMES = {
    "400": (Refused, 1, False),
    "401": (Misplaced, 1, False),
    "403": (Misplaced, 1, True),
    "404": (Misplaced, 1, False),
    "quota": (Misplaced, 1, False),
    "redirect": (Misplaced, 1, False),
    "429": (Down, 3, False),
    "500": (Down, 3, True),
    "503": (Down, 3, True),
    "hang": (Down, 3, True),
    "trickle": (Down, 3, True),
    "no reply": (Down, 3, True),
    "half a body": (Down, 3, True),
    "half a stream": (Down, 3, True),
    "malformed JSON": (Down, 3, True),
    "not a completion": (Down, 3, True),
    "no choices": (Down, 3, True),
    "endless": (Down, 1, True),
    "empty answer": (None, 1, False),
    "null answer": (None, 1, False),
    "10 MB": (None, 1, False),
    "no usage": (None, 1, False),
    "odd usage": (None, 1, False),
}


class Waits:
    """A Stop that is never set; it notes the pauses and does not make them."""

    def __init__(self):
        self.seconds = []

    def is_set(self):
        return False

    def wait(self, timeout=None):
        if timeout:
            self.seconds.append(timeout)
        return False


@pytest.fixture(autouse=True)
def key(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")


def config(server, **changes):
    fields = {"key_env": "MY_KEY", "attempts": 3, "backoff_s": 0.001, "timeout_s": 20.0}
    return ModelConfig("m", base_url=server.url, **(fields | changes))


def test_every_fault_is_expected():
    assert OUTCOMES.keys() == set(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays(name):
    raised, requests, doubtful = OUTCOMES[name]
    timeout_s = 0.3 if name in ("hang", "trickle") else 20.0
    with OpenAIServer(lambda *_: Fault(name), key=KEY) as server:
        model = Endpoint(config(server, timeout_s=timeout_s))
        if raised is None:
            assert model.ask(SAID).attempts == 1
        else:
            with pytest.raises(raised) as caught:
                model.ask(SAID)
            error = caught.value
            assert (error.attempts, error.doubtful) == (requests, doubtful)
            assert isinstance(error, UserError) == (raised is not Down)
            assert KEY not in str(error)
        assert len(server.seen) == requests


@pytest.mark.parametrize(
    "name", [name for name, (_, requests, _) in OUTCOMES.items() if requests == 3]
)
def test_a_fault_that_passes(name):
    with OpenAIServer([Fault(name), Fault(name), "four five"], key=KEY) as server:
        timeout_s = 2.0 if name in ("hang", "trickle") else 20.0
        model = Endpoint(config(server, timeout_s=timeout_s))
        answer = model.ask(SAID)
    assert (answer.text, answer.attempts, answer.estimated) == ("four five", 3, False)
    # Only the answer's own tokens count: nobody knows what the others cost.
    assert (answer.tokens_in, answer.tokens_out) == (3, 2)


def test_what_is_sent():
    with OpenAIServer(["a", "b"], key=KEY) as server:
        Endpoint(config(server, max_tokens=7)).ask(SAID)
        Endpoint(config(server, temperature=0.5)).ask({**SAID, "max_tokens": 5, "stop": ["x"]})
    first, second = server.seen
    assert first["path"] == "/v1/chat/completions"
    assert first["headers"]["authorization"] == f"Bearer {KEY}"
    assert first["body"] == {"model": "m", "max_tokens": 7, **SAID}
    expected = {"model": "m", "max_tokens": 5, "temperature": 0.5, "stop": ["x"], **SAID}
    assert second["body"] == expected


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-account")
    with OpenAIServer(["a"]) as server:
        Endpoint(config(server, key_env="NOT_SET")).ask(SAID)
    assert "authorization" not in server.seen[0]["headers"]
    assert "sk-of-another-account" not in str(server.seen)


def test_pauses_double_and_the_server_may_ask_for_longer_ones():
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    asked = (None, 7, None, 1000, email.utils.format_datetime(soon), "nonsense", -3, "nan")
    waits = Waits()
    with OpenAIServer([Fault("429", wait) for wait in asked] + ["done"], key=KEY) as server:
        Endpoint(config(server, attempts=9, backoff_s=1.0)).ask(SAID, stop=waits)
    # 2^(n-1) seconds, up to a quarter of one more by chance, or what was asked for, at most 120 s
    for n, low in enumerate((1, 7, 4, 120, None, 32, 64, 120)):
        if low is not None:
            assert low <= waits.seconds[n] <= low + 0.25
    assert 16 <= waits.seconds[4] <= 60 and len(waits.seconds) == 8


def test_once_stopped_there_are_no_more_tries():
    class Stopped(Waits):
        def is_set(self):
            return True

    with OpenAIServer(lambda *_: Fault("500"), key=KEY) as server, pytest.raises(Down) as caught:
        Endpoint(config(server)).ask(SAID, stop=Stopped())
    assert caught.value.attempts == len(server.seen) == 1


def test_tokens_that_are_not_counted_are_estimated():
    # 4 bytes a token: [null, [{"role": "user", "content": "one two three"}], null] is 64, and
    # "word word word" 14.
    with OpenAIServer([Fault("no usage"), Fault("odd usage")], key=KEY) as server:
        model = Endpoint(config(server))
        answers = [model.ask(SAID) for _ in range(2)]
    text = '[null, [{"role": "user", "content": "one two three"}], null]'
    for answer in answers:
        assert answer.estimated and answer.tokens_in == math.ceil(len(text) / 4)
        assert answer.tokens_out == 4


def test_a_long_answer_is_cut_and_counted_whole():
    with OpenAIServer([Fault("10 MB")], key=KEY) as server:
        answer = Endpoint(config(server)).ask(SAID)
    assert answer.cut and answer.finish == "length" and len(answer.text) == 1 << 20
    assert answer.tokens_out == 2_000_000


def test_a_cut_keeps_characters_whole(monkeypatch):
    monkeypatch.setattr(endpoint, "LARGEST_TEXT", 4)
    with OpenAIServer(["aéé", "aééé"], key=KEY) as server:
        model = Endpoint(config(server))
        assert [model.ask(SAID).text for _ in range(2)] == ["aé", "aé"]


@pytest.mark.parametrize("name", ["empty answer", "null answer"])
def test_an_empty_answer_is_an_answer(name):
    with OpenAIServer([Fault(name)], key=KEY) as server:
        answer = Endpoint(config(server)).ask(SAID)
    assert answer.text == "" and (answer.tokens_in, answer.tokens_out) == (3, 0)


def test_half_surrogates_pass_both_ways_as_question_marks():
    with OpenAIServer(["\ud83d!"], key=KEY) as server:
        answer = Endpoint(config(server)).ask(
            {"messages": [{"role": "user", "content": "\udc00?"}]}
        )
    assert answer.text == "?!"
    assert server.seen[0]["body"]["messages"][0]["content"] == "??"


def test_a_request_that_is_no_json_is_refused_here():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with OpenAIServer([], key=KEY) as server:
        for odd in (math.nan, {1, 2}, deep):
            with pytest.raises(Refused, match="no JSON"):
                Endpoint(config(server)).ask({**SAID, "seed": odd})
    assert server.seen == []


def test_tool_calls_are_kept_and_broken_ones_tried_again():
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    broken = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
    with OpenAIServer([broken, message], key=KEY) as server:
        answer = Endpoint(config(server)).ask(SAID)
    assert answer.message == message and answer.attempts == 2


def test_tool_calls_of_servers_that_take_liberties():
    odd = {"function": {"name": "bash", "arguments": {"a": 1}}}
    with OpenAIServer([{"role": "assistant", "tool_calls": [odd]}], key=KEY) as server:
        message = Endpoint(config(server)).ask(SAID).message
    call = {
        "id": "call_0",
        "type": "function",
        "function": {"name": "bash", "arguments": '{"a": 1}'},
    }
    assert message == {"role": "assistant", "content": None, "tool_calls": [call]}


def test_the_key_in_an_answer_is_taken_out():
    with OpenAIServer([f"your key is {KEY}"], key=KEY) as server:
        assert Endpoint(config(server)).ask(SAID).text == "your key is (the key)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key_env": "NOT_SET"}, "HTTP 401: .* NOT_SET .* is not set"),
        ({"model": "z"}, "HTTP 404: no such model. It has: a, m. Fix: check model"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "no connection: .*refused.* Fix: start a server"),
    ],
)
def test_preflight_says_what_is_wrong(changes, words):
    with OpenAIServer([], key=KEY, models=("m", "a")) as server:
        fields = {"model": "m", "base_url": server.url, "key_env": "MY_KEY", "backoff_s": 0.001}
        with pytest.raises(UserError, match=words):
            Endpoint(ModelConfig(**(fields | changes))).preflight()


def test_preflight_passes_a_moment_of_weakness():
    with OpenAIServer([Fault("503"), "OK"], key=KEY) as server:
        model = Endpoint(config(server))
        said = model.described(model.preflight())
    assert said.startswith(f"m at {server.url} answers in ") and said.endswith("counts tokens")


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_the_makers_own_address_wants_a_key(api):
    name = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}[api]
    with pytest.raises(UserError, match=f"{name}.*is not set"):
        Endpoint(ModelConfig("m", api=api))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "localhost:8000/v1"}, "is no address"),
        ({"base_url": "http://[/v1"}, "is no address"),
        ({"base_url": "http://me:pw@host/v1"}, "holds a user name"),
        ({"key_env": "sk-abc-def"}, "not the key"),
        ({"api": "gopher"}, 'Give "openai" or "anthropic"'),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"attempts": 0}, "attempts=0"),
        ({"timeout_s": 0.0}, "timeout_s=0.0"),
        ({"price_in": -1.0}, "price_in=-1.0"),
        ({"price_out": math.nan}, "price_out=nan"),
    ],
)
def test_a_model_that_cannot_be(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        ModelConfig(**({"model": "m"} | changes))
    assert "sk-abc-def" not in str(caught.value) and "pw" not in str(caught.value)


def test_a_key_that_is_none_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1\nX-Evil: 1")
    with pytest.raises(UserError, match="MY_KEY holds characters") as caught:
        Endpoint(ModelConfig("m", base_url="http://localhost:1/v1", key_env="MY_KEY"))
    assert "Evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("api", "given", "used"),
    [
        ("openai", "http://h:1/v1/", "http://h:1/v1"),
        ("openai", "http://h:1/v1/chat/completions", "http://h:1/v1"),
        ("openai", None, "https://api.openai.com/v1"),
        ("anthropic", "http://h:1/v1", "http://h:1"),
        ("anthropic", None, "https://api.anthropic.com"),
    ],
)
def test_addresses(api, given, used):
    assert ModelConfig("m", api=api, base_url=given).address == used


def test_openais_own_address_gets_the_newer_name_of_the_limit(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    body = Endpoint(ModelConfig("m", max_tokens=9))._body(SAID)
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body


def test_a_client_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(UserError, match="uv sync --extra anthropic"):
        Endpoint(ModelConfig("m", api="anthropic", base_url="http://localhost:1", key_env="MY_KEY"))


def test_prices_are_dollars_a_million_tokens():
    assert ModelConfig("m", price_in=3.0, price_out=15.0).dollars(1000, 200) == pytest.approx(0.006)


class TestAnthropic:
    """Its own client against the same server, where it is installed."""

    @pytest.fixture(autouse=True)
    def client(self):
        pytest.importorskip("anthropic")

    def test_an_answer(self):
        system = {"role": "system", "content": "be brief"}
        with OpenAIServer(["four five"], key=KEY) as server:
            model = Endpoint(config(server, api="anthropic", max_tokens=7))
            answer = model.ask({"messages": [system, *SAID["messages"]], "stop": "x"})
        assert answer.message == {"role": "assistant", "content": "four five"}
        assert (answer.finish, answer.tokens_in, answer.tokens_out) == ("stop", 5, 2)
        (seen,) = server.seen
        assert seen["path"] == "/v1/messages"
        assert seen["body"] == {
            "model": "m",
            "max_tokens": 7,
            "system": "be brief",
            "stop_sequences": ["x"],
            **SAID,
        }

    @pytest.mark.parametrize("name", ["401", "404", "429", "500", "half a body", "malformed JSON"])
    def test_a_fault_that_stays(self, name):
        raised, requests, _ = OUTCOMES[name]
        with OpenAIServer(lambda *_: Fault(name), key=KEY) as server:
            with pytest.raises(raised) as caught:
                Endpoint(config(server, api="anthropic")).ask(SAID)
            assert len(server.seen) == requests == caught.value.attempts
        assert name != "404" or "HTTP 404: no such model. It has: m." in str(caught.value)

    def test_tools_are_refused_by_name(self):
        with OpenAIServer([], key=KEY) as server:
            model = Endpoint(config(server, api="anthropic"))
            with pytest.raises(Refused, match="no tools here"):
                model.ask({**SAID, "tools": []})
        assert server.seen == []
