"""The models of a run: what a call costs, what is logged, when a budget stops it."""

import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable, Usage
from selfevolve_jax.dgm.llm.config import BudgetConfig, ModelsConfig
from selfevolve_jax.dgm.llm.models import open_models
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.llm.config import ModelConfig
from selfevolve_jax.llm.endpoint import Refused
from tests.dgm.gateway_client import SAID, ask, text_of
from tests.openai_server import Fault, OpenAIServer

KEY = "sk-very-secret-1"
MESSAGES = SAID["messages"]  # 3 tokens
# Dollars a million tokens. A call of 3 in and 2 out is 3 · 1 + 2 · 4 = 11 millionths of a dollar.
PRICES = {"price_in": 1.0, "price_out": 4.0}
CALL = Usage(1, 3, 2, 11e-6)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MY_KEY", KEY)


def model(server, name="m", **changes):
    fields = {"key_env": "MY_KEY", "attempts": 2, "backoff_s": 0.001, "timeout_s": 20.0, **PRICES}
    return ModelConfig(name, base_url=server.url, **(fields | changes))


def lines(run):
    return [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]


def same(usage, expected):
    counts = (usage.calls, usage.tokens_in, usage.tokens_out)
    assert counts == (expected.calls, expected.tokens_in, expected.tokens_out)
    assert usage.dollars == pytest.approx(expected.dollars, rel=1e-9)


def times(n):
    return sum([CALL] * n, Usage())


def test_a_call_and_its_line_and_file(tmp_path):
    with OpenAIServer(["four five"], key=KEY) as server:
        models = open_models(ModelsConfig(model(server)), tmp_path)
        text, usage = models.chat("diagnosis", MESSAGES, "diagnosis of agent 3")
        same(models.usage(), CALL)
        models.close()
    assert text == "four five"
    same(usage, CALL)
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1.7e9 and line.pop("seconds") >= 0
    assert line == {
        "event": "call",
        "call": 1,
        "role": "diagnosis",
        "purpose": "diagnosis of agent 3",
        "model": "m",
        "tokens_in": 3,
        "tokens_out": 2,
        "dollars": pytest.approx(11e-6),
        "estimated": False,
        "attempts": 1,
        "outcome": "ok",
        "file": "calls/000/000001.json.gz",
    }
    whole = json.loads(gzip.decompress((tmp_path / line["file"]).read_bytes()))
    assert whole["request"] == {"messages": MESSAGES} and whole["call"] == 1
    assert whole["answer"] == {"role": "assistant", "content": "four five"}


@pytest.mark.parametrize(
    ("answers", "raised", "outcomes", "spent"),
    [
        # what is plain, asked of a server that is down, is the probe: it has no second try
        ([Fault("500")] * 3, Unavailable, ["down: ", "down: "], Usage(2)),
        ([Fault("429")] * 2, Unavailable, ["down: "], Usage(1)),
        ([Fault("400")], Refused, ["refused: "], Usage(1)),
        ([Fault("401")], UserError, ["misplaced: "], Usage(1)),
        ([Fault("empty answer")], None, ["empty"], Usage(1, 3, 0, 3e-6)),
        ([Fault("10 MB")], None, ["cut"], Usage(1, 3, 2_000_000, 8.000003)),
        ([Fault("half a body"), "four five"], None, ["ok"], CALL),
        # "Answer with OK." is 3 tokens, and so is its answer here
        (
            [Fault("500")] * 2 + ["yes I can", "four five"],
            None,
            ["down: ", "ok", "ok"],
            Usage(3, 6, 5, 26e-6),
        ),
        (
            [Fault("malformed JSON")] * 2 + ["yes I can", Fault("malformed JSON")],
            Refused,
            ["down: ", "ok", "down: "],
            Usage(3, 3, 3, 15e-6),
        ),
        ([Fault("403"), "yes I can", Fault("403")], Refused, None, Usage(3, 3, 3, 15e-6)),
        ([Fault("403"), Fault("401")], UserError, ["misplaced: "] * 2, Usage(2)),
    ],
)
def test_what_comes_of_a_fault(tmp_path, answers, raised, outcomes, spent):
    with OpenAIServer(answers, key=KEY) as server:
        models = open_models(ModelsConfig(model(server)), tmp_path)
        if raised is None:
            models.chat("coding", MESSAGES, "x")
        else:
            with pytest.raises(raised):
                models.chat("coding", MESSAGES, "x")
        assert len(server.seen) == len(answers)  # every recorded answer was played
        same(models.usage(), spent)
        models.close()
    found = lines(tmp_path)
    for line, outcome in zip(found, outcomes or [""] * 3, strict=True):
        assert line["outcome"].startswith(outcome)
    assert sum(line["attempts"] for line in found) == len(answers)
    assert all((tmp_path / line["file"]).is_file() for line in found)


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        ({"dollars": 30e-6}, 3),  # 11, 22, 33: the third passes it, the fourth is not made
        ({"dollars": 33e-6}, 3),
        ({"tokens": 10}, 2),  # 5, 10
        ({"tokens": 11}, 3),
    ],
)
def test_a_budget_stops_at_the_call_that_follows_it(tmp_path, budget, calls):
    with OpenAIServer(lambda *_: "four five", key=KEY) as server:
        config = ModelsConfig(model(server), budget=BudgetConfig(**budget))
        models = open_models(config, tmp_path)
        for _ in range(calls):
            models.chat("coding", MESSAGES, "x")
        with pytest.raises(BudgetSpent, match="is spent"):
            models.chat("diagnosis", MESSAGES, "x")
        with pytest.raises(BudgetSpent), models.session("coding", "x"):
            raise AssertionError("no session without a budget")
        assert len(server.seen) == calls
        models.close()
        # Nor after a resume, for the money is counted from the log.
        models = open_models(config, tmp_path)
        same(models.usage(), times(calls))
        with pytest.raises(BudgetSpent):
            models.chat("coding", MESSAGES, "x")
        models.close()


def test_a_resume_goes_on_counting_and_cuts_a_torn_line_off(tmp_path):
    with OpenAIServer(lambda *_: "four five", key=KEY) as server:
        config = ModelsConfig(model(server))
        models = open_models(config, tmp_path)
        for _ in range(3):
            models.chat("coding", MESSAGES, "x")
        models.close()
        with open(tmp_path / "calls.jsonl", "ab") as file:
            file.write(b'{"event": "call", "call": 4, "dollars": 9')
        models = open_models(config, tmp_path)
        assert models.torn == 41
        models.chat("coding", MESSAGES, "x")
        same(models.usage(), times(4))
        models.close()
    found = lines(tmp_path)
    assert [line["call"] for line in found] == [1, 2, 3, 4]
    assert len({line["file"] for line in found}) == 4


def test_a_log_of_something_else_is_named(tmp_path):
    (tmp_path / "calls.jsonl").write_text('{"event": "call", "tokens_in": 1}\n')
    with OpenAIServer([]) as server, pytest.raises(UserError, match=r"calls\.jsonl is damaged"):
        open_models(ModelsConfig(model(server)), tmp_path)


def test_twenty_sessions_at_once_add_up(tmp_path):
    """Session i asks five times, with i + 1 words: the sums are 5 · (i + 1) in, 10 out."""

    with OpenAIServer(lambda *_: "four five", key=KEY) as server:
        models = open_models(ModelsConfig(model(server)), tmp_path)
        start = threading.Barrier(20)

        def job(i):
            words = {"messages": [{"role": "user", "content": "word " * (i + 1)}]}
            with models.session("coding", f"job {i}") as session:
                start.wait()
                for _ in range(5):
                    status, reply = ask(session.socket, words)
                    assert (status, text_of(reply)) == (200, "four five")
            return session.usage()

        with ThreadPoolExecutor(20) as pool:
            usages = list(pool.map(job, range(20)))
        for i, usage in enumerate(usages):
            same(usage, Usage(5, 5 * (i + 1), 10, (5 * (i + 1) + 40) * 1e-6))
        same(models.usage(), Usage(100, 5 * 210, 200, (5 * 210 + 800) * 1e-6))
        models.close()
    found = lines(tmp_path)
    assert sorted(line["call"] for line in found) == list(range(1, 101))
    for i in range(20):
        assert sum(line["purpose"] == f"job {i}" for line in found) == 5
    for line in found:  # each line with its own file
        whole = json.loads(gzip.decompress((tmp_path / line["file"]).read_bytes()))
        assert (whole["call"], whole["purpose"]) == (line["call"], line["purpose"])


def test_the_key_is_nowhere(tmp_path, capfd):
    """In answers, in errors, in what the run keeps, in what a job hears: not even if the server or a
    message repeats it."""
    answers = [f"it is {KEY}", f"again {KEY}", Fault("401")]
    told = {"messages": [{"role": "user", "content": f"I found {KEY}"}]}
    with OpenAIServer(answers, key=KEY) as server:
        models = open_models(ModelsConfig(model(server)), tmp_path)
        text, _ = models.chat("coding", told["messages"], f"about {KEY}")
        with pytest.raises(UserError) as caught, models.session("coding", "x") as session:
            _, reply = ask(session.socket)
            assert text_of(reply) == "again (the key)"
            status, error = ask(session.socket)
        assert status == 503
        models.close()
    for said in (text, json.dumps(error), str(caught.value), *capfd.readouterr()):
        assert KEY not in said
    assert "Incorrect API key: (the key)" in str(caught.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        data = path.read_bytes()
        assert KEY.encode() not in (gzip.decompress(data) if path.suffix == ".gz" else data)


def test_preflight_asks_each_endpoint_once(tmp_path):
    with OpenAIServer(["yes I can"] * 3, key=KEY, models=("m", "d")) as server:
        said: list[str] = []
        models = open_models(ModelsConfig(model(server)), tmp_path / "one")
        models.preflight(said.append)
        assert len(said) == 1 and said[0].startswith(f"coding: m at {server.url} answers in ")
        models.close()
        both = ModelsConfig(model(server), model(server, "d"))
        models = open_models(both, tmp_path / "two")
        models.preflight(said.append)
        same(models.usage(), Usage(2, 6, 6, 30e-6))
        assert not (tmp_path / "two").exists()  # nothing is written before there is a run
        models.log_preflight()
        assert [line["call"] for line in lines(tmp_path / "two")] == [1, 2]
        models.close()
    assert [line.partition(" at ")[0] for line in said[1:]] == ["coding: m", "diagnosis: d"]
    assert [seen["body"]["model"] for seen in server.seen] == ["m", "m", "d"]


def test_preflight_says_what_is_wrong_once(tmp_path):
    with OpenAIServer([], key=KEY) as server:
        models = open_models(ModelsConfig(model(server), model(server, "z")), tmp_path)
        with pytest.raises(UserError, match=r"the diagnosis model: z .* HTTP 404: .*\. It has: m"):
            server.answers = ["yes I can"]
            models.preflight(lambda _: None)
        models.close()
    assert not list(tmp_path.iterdir())


def test_a_role_has_its_own_model_and_prices(tmp_path):
    with OpenAIServer(lambda *_: "four five", key=KEY, models=("m", "d")) as server:
        config = ModelsConfig(model(server), model(server, "d", price_in=0.0, price_out=50.0))
        models = open_models(config, tmp_path)
        same(models.chat("coding", MESSAGES, "x")[1], CALL)
        same(models.chat("diagnosis", MESSAGES, "x")[1], Usage(1, 3, 2, 100e-6))
        with pytest.raises(ValueError, match="none of"):
            models.chat("judge", MESSAGES, "x")
        models.close()
    assert [seen["body"]["model"] for seen in server.seen] == ["m", "d"]


def test_a_full_disk_is_told_and_the_money_is_counted(tmp_path, monkeypatch):
    with OpenAIServer(lambda *_: "four five", key=KEY) as server:
        models = open_models(ModelsConfig(model(server)), tmp_path)

        def full(path, data):
            raise DiskError("no space left")

        monkeypatch.setattr("selfevolve_jax.run_dir.write_bytes_atomic", full)
        with pytest.raises(DiskError), models.session("coding", "x") as session:
            assert ask(session.socket)[0] == 503
        same(models.usage(), CALL)
        assert not (tmp_path / "calls.jsonl").exists()
        models.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"diagnosis": ModelConfig(base_url="http://h/v1")}, "not diagnosis.model"),
        ({"coding": ModelConfig("m"), "budget": BudgetConfig(dollars=1.0)}, "m .coding. costs"),
        (
            {
                "coding": ModelConfig("m", price_in=1.0),
                "diagnosis": ModelConfig("d"),
                "budget": BudgetConfig(session_dollars=1.0),
            },
            "d .diagnosis. costs nothing",
        ),
    ],
)
def test_models_that_cannot_be(fields, words):
    with pytest.raises(UserError, match=words):
        ModelsConfig(**fields)


@pytest.mark.parametrize("name", ["dollars", "tokens", "session_tokens", "session_calls"])
def test_a_budget_that_cannot_be(name):
    for value in (0, -1, float("nan")):
        with pytest.raises(UserError, match=f"budget.{name}="):
            BudgetConfig(**{name: value})  # pyright: ignore[reportArgumentType]


def test_a_model_without_a_name_is_named_by_its_role(tmp_path):
    with pytest.raises(UserError, match="the coding model: model is empty"):
        open_models(ModelsConfig(), tmp_path)
