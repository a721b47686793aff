"""The socket that a job has: what it lets through, and whose fault a failure is."""

import contextlib
import json
import os
import socket
import stat
import threading
import time

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable, Usage
from selfevolve_jax.dgm.llm import gateway, protocol
from selfevolve_jax.dgm.llm.config import BudgetConfig, ModelsConfig
from selfevolve_jax.dgm.llm.models import open_models
from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ModelConfig
from tests.dgm.gateway_client import SAID, Client, ask, text_of
from tests.openai_server import Fault, OpenAIServer

TOOL = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}


@contextlib.contextmanager
def opened(folder, answers, budget=None, **changes):
    """(models, server)."""
    with OpenAIServer(answers) as server:
        fields = {"key_env": "NOT_SET", "attempts": 2, "backoff_s": 0.001, "timeout_s": 20.0}
        coding = ModelConfig("m", base_url=server.url, **(fields | changes))
        models = open_models(ModelsConfig(coding, budget=budget or BudgetConfig()), folder)
        try:
            yield models, server
        finally:
            models.close()


def code_of(reply):
    return reply["error"]["code"]


def test_a_call_through_the_socket(tmp_path):
    with opened(tmp_path, ["four five"], max_tokens=9) as (models, server):
        with models.session("coding", "x") as session:
            status, reply = ask(session.socket, {**SAID, "model": "gpt-9", "temperature": 1})
        assert not os.path.exists(session.socket)
    assert status == 200 and text_of(reply) == "four five" and reply["model"] == "coding"
    assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    body = {"model": "m", "max_tokens": 9, "temperature": 1, **SAID}
    assert [seen["body"] for seen in server.seen] == [body]
    assert session.usage() == Usage(1, 3, 2, 0.0)


def test_openais_own_client_speaks_it_whole_and_as_a_stream(tmp_path):
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answers = ["four five", "four five", calls]
    with opened(tmp_path, answers) as (models, _), models.session("coding", "x") as session:
        # Its HTTP library, httpx or httpx2, has a transport over a unix socket.
        library = __import__(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
        over = library.Client(transport=library.HTTPTransport(uds=session.socket))
        client = openai.OpenAI(base_url="http://x/v1", api_key="any", http_client=over)
        create = client.chat.completions.create
        messages = SAID["messages"]
        whole = create(model="any", messages=messages)  # pyright: ignore
        assert whole.choices[0].message.content == "four five"
        parts = list(create(model="any", messages=messages, stream=True))  # pyright: ignore
        assert [p.choices[0].delta.content for p in parts] == ["four five"]
        parts = list(create(model="any", messages=messages, stream=True))  # pyright: ignore
        (call,) = parts[0].choices[0].delta.tool_calls
        assert (call.index, call.id, call.function.name) == (0, "c1", "bash")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": []}, "not empty"),
        ({"messages": "hello"}, "not empty"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "", "audio": {}}]}, "audio"),
        # The model's server would fetch it: a way out of the sandbox.
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://evil/"}}],
                    }
                ]
            },
            "parts of type text",
        ),
        ({"tools": [{"type": "web_search"}]}, "type function"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"logit_bias": {}}, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"n": 2}, "n must be 1"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
    ],
)
def test_what_is_not_let_through(tmp_path, changes, words):
    with opened(tmp_path, []) as (models, server):
        with models.session("coding", "x") as session:
            status, reply = ask(session.socket, SAID | changes)
            assert status == 400 and words in reply["error"]["message"]
        assert server.seen == [] and session.usage() == Usage()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff\xfe", b"[" * 200_000, b"9" * 9999],
)
def test_bodies_that_are_no_request(tmp_path, body):
    with opened(tmp_path, []) as (models, _), models.session("coding", "x") as session:
        status, reply = ask(session.socket, body)
        assert status == 400 and reply["error"]["type"] == "invalid_request_error"


def test_every_known_option_is_let_through_and_tokens_are_capped(tmp_path):
    given_ = {
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "seed": 7,
        "stop": ["x"],
        "response_format": {"type": "json_object"},
        "tools": [TOOL],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "go"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    dropped = {"n": 1, "user": "me", "stream": False, "logprobs": None}
    asked = {**given_, **dropped, "messages": messages, "max_completion_tokens": 10_000}
    with (
        opened(tmp_path, ["four five"] * 2, max_tokens=9) as (models, server),
        models.session("coding", "x") as session,
    ):
        assert ask(session.socket, asked)[0] == 200
        assert ask(session.socket, {**SAID, "max_tokens": 4})[0] == 200
    assert server.seen[0]["body"] == {
        **given_,
        "messages": messages,
        "model": "m",
        "max_tokens": 9,
    }
    assert server.seen[1]["body"]["max_tokens"] == 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted((*protocol._PASSED, *protocol._IGNORED, "other")))


@given(st.dictionaries(FIELDS, JSON), st.booleans())
def test_any_json_is_let_through_or_refused_by_name(fields, with_messages):
    body = json.dumps({**fields, **(SAID if with_messages else {})}).encode()
    try:
        passed, _ = protocol.read(body, 9)
    except protocol.Bad as error:
        assert str(error)
    else:
        assert passed.keys() <= set(protocol._PASSED) and 1 <= passed.get("max_tokens", 1) <= 9
        json.dumps(passed, allow_nan=False)


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/v1/models", 404),
        ("POST", "/v1/completions", 404),
        ("POST", "http://elsewhere.example/v1/chat/completions", 404),
        ("PUT", "/v1/chat/completions", 404),
        ("BREW", "/v1/chat/completions", 501),
    ],
)
def test_there_is_nothing_else(tmp_path, method, url, status):
    with opened(tmp_path, []) as (models, _), models.session("coding", "x") as session:
        found, reply = ask(session.socket, SAID, method, url)
        assert found == status and reply["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 411),
        (b"Content-Length: -1\r\n", 411),
        (b"Content-Length: many\r\n", 411),
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: 4194305\r\n", 413),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", 413),
        (b"X: " + b"x" * 70_000 + b"\r\n", 431),
        (b"".join(b"X-%d: y\r\n" % i for i in range(200)), 431),
    ],
)
def test_a_body_of_unknown_or_unwelcome_length(tmp_path, headers, status):
    with opened(tmp_path, []) as (models, _), models.session("coding", "x") as session:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(session.socket)
            with contextlib.suppress(BrokenPipeError):
                raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n" + headers + b"\r\n")
            reply = raw.makefile("rb").readline()
        assert reply.split()[1] == str(status).encode()


def test_one_connection_serves_many_calls(tmp_path):
    with opened(tmp_path, ["one", "two"]) as (models, _), models.session("coding", "x") as session:
        client = Client(session.socket)
        for text in ("one", "two"):
            client.request("POST", "/v1/chat/completions", json.dumps(SAID))
            assert text_of(json.loads(client.getresponse().read())) == text
        client.close()


def test_the_socket_is_within_reach_of_its_own_job_alone(tmp_path):
    """Its folder is closed to other users; a sandbox binds the socket itself."""
    with (
        opened(tmp_path, []) as (models, _),
        models.session("coding", "x") as one,
        models.session("coding", "y") as two,
    ):
        assert one.socket != two.socket and len(one.socket) <= 107
        assert stat.S_IMODE(os.stat(one.socket).st_mode) == 0o666
        folder = os.path.dirname(one.socket)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert not os.path.exists(folder)


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        ({"session_calls": 2}, 2),
        ({"session_tokens": 11}, 3),  # 5, 10, 15
        ({"session_dollars": 11e-6}, 1),
    ],
)
def test_a_jobs_own_budget_is_its_own_affair(tmp_path, budget, calls):
    budget = BudgetConfig(**budget)
    prices = {"price_in": 1.0, "price_out": 4.0}
    with opened(tmp_path, lambda *_: "four five", budget, **prices) as (models, server):
        with models.session("coding", "x") as session:
            for _ in range(calls):
                assert ask(session.socket)[0] == 200
            for _ in range(2):
                status, reply = ask(session.socket)
                assert (status, code_of(reply)) == (429, "budget_spent")
        assert session.usage().calls == len(server.seen) == calls
        with models.session("coding", "y") as session:  # the next has one of its own
            assert ask(session.socket)[0] == 200


def test_the_runs_budget_stops_a_job_and_then_the_run(tmp_path):
    with opened(tmp_path, lambda *_: "four five", BudgetConfig(tokens=10)) as (models, server):
        # A job that got all the answers that it asked for stands.
        with models.session("coding", "x") as session:
            assert ask(session.socket)[0] == 200
        with (
            pytest.raises(BudgetSpent, match="budget of 10 tokens is spent"),
            models.session("coding", "y") as session,
        ):
            assert ask(session.socket)[0] == 200
            for _ in range(2):
                status, reply = ask(session.socket)
                assert (status, code_of(reply)) == (429, "budget_spent")
        assert len(server.seen) == 2 and session.usage().calls == 1


def test_a_refusal_is_the_jobs_to_mend(tmp_path):
    with opened(tmp_path, [Fault("400"), "four five"]) as (models, server):
        with models.session("coding", "x") as session:
            status, reply = ask(session.socket)
            assert (status, code_of(reply)) == (400, "refused")
            # The server's own words, by which an agent knows that its context is too long; no address.
            assert reply["error"]["message"] == "the prompt is too long"
            assert server.url not in json.dumps(reply)
            assert ask(session.socket)[0] == 200
        assert session.usage() == Usage(2, 3, 2, 0.0)


@pytest.mark.parametrize(
    ("name", "raised", "requests"),
    [
        ("500", Unavailable, 3),  # two tries, and a plain request that fails too
        ("half a stream", Unavailable, 3),
        ("429", Unavailable, 2),
        ("401", UserError, 1),
        ("404", UserError, 1),
        ("403", UserError, 2),
    ],
)
def test_an_endpoint_that_fails_is_not_the_agents_fault(tmp_path, name, raised, requests):
    with opened(tmp_path, lambda *_: Fault(name)) as (models, server):
        with pytest.raises(raised), models.session("coding", "x") as session:
            for _ in range(2):  # the second is not put to an endpoint that is known to fail
                status, reply = ask(session.socket)
                assert (status, code_of(reply)) == (503, "unavailable")
                assert len(server.seen) == requests
                assert server.url not in json.dumps(reply)
        with models.session("coding", "y"):  # another job may find it well again
            pass


def test_a_request_that_makes_the_endpoint_fail_is_the_agents_fault(tmp_path):
    """Else an agent could have each of its evaluations thrown away."""

    def answer(_, body):
        return Fault("500") if "poison" in str(body) else "four five"

    poison = {"messages": [{"role": "user", "content": "poison"}]}
    with opened(tmp_path, answer) as (models, server), models.session("coding", "x") as session:
        status, reply = ask(session.socket, poison)
        assert (status, code_of(reply)) == (400, "refused")
        assert ask(session.socket)[0] == 200
    # Two tries, a plain request, once more; then the harmless one.
    assert ["poison" in str(seen["body"]) for seen in server.seen] == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_a_job_that_is_killed_in_a_call_pays_for_it_and_is_not_tried_again(tmp_path):
    asked, release = threading.Event(), threading.Event()

    def answer(number, _):
        if number == 0:
            asked.set()
            release.wait(30)
            return Fault("500")
        return "four five"

    with opened(tmp_path, answer, attempts=5, backoff_s=3600.0) as (models, server):
        with models.session("coding", "x") as session:
            client = Client(session.socket)
            client.request("POST", "/v1/chat/completions", json.dumps(SAID))
            asked.wait(30)
            client.close()  # as when the job is killed
            release.set()
            usage = session.usage()
        # One try without a minute's pause, and a plain request, which tells that the endpoint is well:
        # so nothing is raised.
        assert usage == Usage(calls=1) and len(server.seen) == 2


def test_leaving_by_an_error_does_not_wait_and_keeps_the_error(tmp_path):
    asked, release = threading.Event(), threading.Event()

    def answer(*_):
        asked.set()
        release.wait(30)
        return "four five"

    with opened(tmp_path, answer) as (models, _):
        with pytest.raises(KeyboardInterrupt), models.session("coding", "x") as session:
            client = Client(session.socket)
            client.request("POST", "/v1/chat/completions", json.dumps(SAID))
            asked.wait(30)
            raise KeyboardInterrupt
        assert not os.path.exists(session.socket) and not release.is_set()
        release.set()
        assert session.usage() == Usage(1, 3, 2, 0.0)  # the call still ended, and was counted
        while models.usage().calls == 0:
            time.sleep(0.01)
        client.close()


def test_more_connections_than_a_job_may_have_are_closed(tmp_path):
    with opened(tmp_path, ["four five"]) as (models, _), models.session("coding", "x") as session:
        idle = [Client(session.socket) for _ in range(gateway.CONNECTIONS)]
        for client in idle:
            client.connect()
        with pytest.raises(OSError):
            ask(session.socket)
        idle.pop().close()
        while True:  # its place is free as soon as the gateway has noticed
            with contextlib.suppress(OSError):
                assert ask(session.socket)[0] == 200
                break
        for client in idle:
            client.close()


def test_half_a_request_holds_nothing_up(tmp_path):
    with (
        opened(tmp_path, ["four five"]) as (models, _),
        models.session("coding", "x") as session,
        socket.socket(socket.AF_UNIX) as raw,
    ):
        raw.connect(session.socket)
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert ask(session.socket)[0] == 200
        session.close()  # while it still waits for the rest
        assert raw.recv(1) == b""


def test_a_body_that_is_too_long_still_gets_its_reply(tmp_path):
    with opened(tmp_path, []) as (models, _), models.session("coding", "x") as session:
        status, reply = ask(session.socket, b"x" * (5 << 20))
        assert status == 413 and "at most 4194304 bytes" in reply["error"]["message"]
