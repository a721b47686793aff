"""The judge against a real HTTP server in this process, which speaks the protocol and breaks it."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfevolve_jax import endpoint, run_dir
from selfevolve_jax.endpoint import Ask, JudgeConfig, ask_all, judged
from selfevolve_jax.errors import UserError


def reply(text, finish="stop"):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def said_of(body):
    return json.loads(body["messages"][1]["content"])


class Server:
    """`answer(number, texts)` gives (status, body, headers); `seen` holds every request."""

    def __init__(self):
        self.seen, self.lock = [], threading.Lock()
        self.answer = lambda number, texts: (200, reply("yes"), {})
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.seen)
                    outer.seen.append((self.path, dict(self.headers), body))
                status, data, headers = outer.answer(number, said_of(body))
                with contextlib.suppress(OSError):  # it may have hung up
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(data))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def config(self, **changes):
        return JudgeConfig(
            self.url,
            **({"model": "m", "backoff_s": 0.01, "timeout_s": 5.0, "parallel": 4} | changes),
        )


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


ASK = Ask("1+1=", "2", "two")


def some(n):
    return [Ask("?", "0", str(i)) for i in range(n)]


def test_what_is_asked_and_what_comes_back(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-1 \n")
    texts = {
        "two": "No doubt: they are equal.\nYES",
        "3": "No value equals it, so:\n**no**",
        "2.0": "yes",
    }
    server.answer = lambda _, said: (200, reply(texts[said["response"]]), {})
    asks = [Ask("1+1=", "2", response) for response in ("two", "3", "2.0", "two")]
    verdicts, counts = ask_all(asks, server.config(key_env="MY_KEY"), tmp_path / "judge.jsonl")
    assert [verdicts[ask] for ask in asks] == [True, False, True, True]
    assert (counts.asked, counts.cached, counts.timeouts, counts.unanswered) == (3, 0, 0, 0)
    assert len(server.seen) == 3  # the same question is asked once
    for path, headers, body in server.seen:
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-1"
        assert body["model"] == "m" and body["temperature"] == 0
        assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
        assert said_of(body) | {"response": 0} == {"problem": "1+1=", "gold": "2", "response": 0}
    # The key is nowhere on disk.
    assert all(b"sk-1" not in path.read_bytes() for path in tmp_path.iterdir())


def test_without_a_key_none_is_sent_and_a_full_address_is_taken(server, tmp_path):
    config = JudgeConfig(server.url + "/chat/completions", "m", backoff_s=0)
    ask_all([ASK], config, tmp_path / "c")
    ((path, headers, _),) = server.seen
    assert path == "/v1/chat/completions" and "Authorization" not in headers


def test_verdicts_are_kept_and_asked_once(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    first, _ = ask_all(some(3), server.config(), cache)
    verdicts, counts = ask_all(some(5), server.config(), cache)
    assert (counts.asked, counts.cached) == (2, 3) and len(server.seen) == 5
    assert len(verdicts) == 5 and first.items() <= verdicts.items()
    # Another judge's verdicts are its own.
    _, counts = ask_all(some(5), server.config(model="other"), cache)
    assert (counts.asked, counts.cached) == (5, 0)
    assert len(cache.read_text().splitlines()) == 10
    _, counts = ask_all(some(5), server.config(), cache)
    assert (counts.asked, counts.cached) == (0, 5) and len(server.seen) == 10


BROKEN = [
    (500, b"oops", {}),
    (503, b"", {"Retry-After": "0"}),
    (429, b"slow down", {}),
    (200, b"<html>", {}),
    (200, b"[]", {}),
    (200, b'{"choices": []}', {}),
    (200, b'{"choices": [{"message": null}]}', {}),
    (200, b'{"choices": [{"message": {"content": null}}]}', {}),
    (200, b'{"choices": [{"message": {"con', {"Content-Length": "500", "Connection": "close"}),
    (200, reply("I cannot tell"), {}),
    (200, reply("yes, as", "length"), {}),
    (200, reply("yes " * 600_000), {}),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: f"{b[0]} {bytes(b[1][:20])!r}")
def test_what_may_pass_is_tried_again(server, tmp_path, broken):
    server.answer = lambda number, _: (200, reply("no"), {}) if number == 2 else broken
    verdicts, counts = ask_all([ASK], server.config(timeout_s=1.0), tmp_path / "c")
    assert verdicts == {ASK: False} and len(server.seen) == 3
    assert (counts.asked, counts.timeouts, counts.unanswered) == (1, 0, 0)


def test_pauses_grow_and_the_server_may_ask_for_longer_ones(server, tmp_path, monkeypatch):
    waits, shared = [], endpoint._Shared(None)
    monkeypatch.setattr(shared.stop, "wait", waits.append)
    asked = iter(("", "7", "", "1000"))
    server.answer = lambda *_: (503, b"", {"Retry-After": next(asked, "")})
    assert endpoint._verdict(ASK, server.config(backoff_s=1.0), shared) is None
    assert waits == [1.0, 7.0, 4.0, 60.0] and len(server.seen) == 5


def test_timeouts_are_counted_and_the_rest_goes_on(server, tmp_path):
    release = threading.Event()

    def answer(_, said):
        if said["response"] == "1":
            release.wait(5)
        return 200, reply("yes"), {}

    server.answer = answer
    config = server.config(timeout_s=0.2, retries=2)
    verdicts, counts = ask_all(some(4), config, tmp_path / "judge.jsonl")
    release.set()
    assert {ask.response for ask in verdicts} == {"0", "2", "3"}
    assert (counts.timeouts, counts.unanswered) == (3, 1)
    # What was not answered is asked the next time, and nothing else.
    before = len(server.seen)
    verdicts, counts = ask_all(some(4), config, tmp_path / "judge.jsonl")
    assert len(verdicts) == 4 and len(server.seen) == before + 1


def test_a_reply_that_trickles_ends_at_the_limit():
    class Trickle:
        def read1(self, _):
            time.sleep(0.02)
            return b"x"

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        endpoint._read(Trickle(), time.monotonic() + 0.1)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "the environment variable OPENAI_API_KEY"),
        (404, {}, "--judge-model and --judge-url"),
        (400, {}, "HTTP 400: no such model"),
        (307, {"Location": "http://elsewhere.example/v1"}, "sends on to http://elsewhere.example"),
        (302, {"Location": "http://127.0.0.1:1/"}, "sends on to"),
    ],
)
def test_a_refusal_is_not_tried_again(server, tmp_path, monkeypatch, status, headers, words):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.answer = lambda *_: (status, b"no such model for sk-secret", headers)
    with pytest.raises(UserError) as caught:
        ask_all([ASK], server.config(), tmp_path / "c")
    assert words in str(caught.value) and "sk-secret" not in str(caught.value)
    assert len(server.seen) == 1


def test_a_dead_endpoint_ends_the_command_and_keeps_what_there_was(server, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "_AT_ONCE", 4)
    cache = tmp_path / "judge.jsonl"
    server.answer = lambda number, _: (200, reply("yes"), {}) if number < 4 else (500, b"", {})
    with pytest.raises(UserError, match="answered none of 4 questions: HTTP 500"):
        ask_all(some(12), server.config(retries=1), cache)
    assert len(cache.read_text().splitlines()) == 4 and len(server.seen) == 12
    gone = JudgeConfig("http://127.0.0.1:9/v1", "m", retries=1, backoff_s=0)
    with pytest.raises(UserError, match="answered none of 1 questions: no connection"):
        ask_all([ASK], gone, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_cache_is_named(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    for line in ("{", "[]", '{"key": "k", "equal": "yes"}', '{"equal": true}'):
        cache.write_text('{"key": "k", "equal": true}\n' + line + "\n")
        with pytest.raises(UserError, match=r"judge\.jsonl line 2 is damaged"):
            ask_all([ASK], server.config(), cache)
    assert server.seen == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "localhost:8000/v1"}, "is no address"),
        ({"url": "file:///etc/passwd"}, "is no address"),
        ({"url": "http:///v1"}, "is no address"),
        ({"url": "http://me:pw@host/v1"}, "holds a user name"),
        ({"model": " "}, "judge_model is empty"),
        ({"timeout_s": 0.0}, "judge_timeout_s=0.0"),
        ({"parallel": 0}, "parallel=0"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        JudgeConfig(**({"url": "http://h/v1", "model": "m"} | changes))


def test_a_key_that_is_none_is_refused_unseen(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nX-Evil: 1")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as caught:
        ask_all([ASK], server.config(), tmp_path / "c")
    assert "Evil" not in str(caught.value)


def sample(text, answer, correct):
    return {"text": text, "answer": answer, "correct": correct, "length": 1, "stopped": True}


def record(row, samples, winner, majority, greedy):
    return {
        "row": row,
        "prompt": f"problem {row}",
        "gold": "1/2",
        "pseudo_label": winner,
        "majority_fraction": 0.5,
        "votes": {},
        "majority_correct": majority,
        "samples": samples,
        "greedy": greedy,
    }


RIGHT = sample("\\boxed{0.5}", "0.5", True)
WORDS = sample("\\boxed{a half}", "a half", False)
WRONG = sample("\\boxed{2}", "2", False)
UNREAD = sample("x" * 3000 + " so it is one half", None, False)
EMPTY = sample(" ", None, False)
RECORDS = [
    record(0, [RIGHT, WORDS], "0.5", True, WORDS),
    record(1, [WRONG, UNREAD], "2", False, WRONG),
    record(2, [EMPTY, WORDS], "a half", False, EMPTY),
    record(3, [RIGHT, WRONG], "0.5", True, RIGHT),
]


def test_judged_figures_by_hand_and_only_the_doubtful_are_asked(server, tmp_path):
    for i, part in enumerate((RECORDS[:3], RECORDS[3:])):
        text = "".join(json.dumps(r) + "\n" for r in part)
        run_dir.write_text_atomic(tmp_path / f"part_{i:05d}.jsonl", text)
    before = {"summary.json": b'{"figures": {"avg@2": 0.25}}'}
    (tmp_path / "summary.json").write_bytes(before["summary.json"])
    server.answer = lambda _, said: (200, reply("yes" if "half" in said["response"] else "no"), {})
    found = judged(tmp_path, server.config(), k=2, pass_at=(1,), seed=0)
    # Right samples: 2, 1 (read by its end), 1, 1 of 2. The vote: yes, no, by the judge, yes.
    assert found["figures"] == {
        "avg@2 judged": 5 / 8,
        "maj@2 judged": 3 / 4,
        "pass@1 judged": 5 / 8,
        "pass@2 judged": 1.0,
        "greedy judged": 2 / 4,
    }
    for name, (low, high) in found["intervals"].items():
        assert low <= found["figures"][name] <= high
    asked = [said_of(body) for _, _, body in server.seen]
    told = sorted((x["problem"], x["response"][-16:], len(x["response"])) for x in asked)
    assert told == [
        ("problem 0", "a half", 6),
        ("problem 1", "2", 1),
        ("problem 1", "so it is one half"[-16:], 2000),
        ("problem 2", "a half", 6),
        ("problem 3", "2", 1),
    ]
    assert found["judge"] == {
        "url": server.url,
        "model": "m",
        "asked": 5,
        "cached": 0,
        "timeouts": 0,
        "unanswered": 0,
    }
    # The rules' own summary is as it was.
    assert (tmp_path / "summary.json").read_bytes() == before["summary.json"]
    assert json.loads((tmp_path / "judged.json").read_text()) == found
    again = judged(tmp_path, server.config(), k=2, pass_at=(1,), seed=0)
    assert again["figures"] == found["figures"] and len(server.seen) == 5
    assert (again["judge"]["asked"], again["judge"]["cached"]) == (0, 5)


def test_a_judge_that_says_no_leaves_the_rules_figures(server, tmp_path):
    run_dir.write_text_atomic(
        tmp_path / "part_00000.jsonl", "".join(json.dumps(r) + "\n" for r in RECORDS)
    )
    server.answer = lambda *_: (200, reply("no"), {})
    found = judged(tmp_path, server.config(), k=2, seed=0)["figures"]
    assert found == {
        "avg@2 judged": 2 / 8,
        "maj@2 judged": 2 / 4,
        "pass@2 judged": 2 / 4,
        "greedy judged": 1 / 4,
    }
