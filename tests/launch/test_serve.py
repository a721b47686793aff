"""`selfevolve serve`: a real server and the real `openai` client, against the engine asked directly."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest
from tokenizers import AddedToken

from launch.cli import main
from launch.serve import Serve, make_served, serve
from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import decode
from selfevolve_jax.rollout import decoding
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.engine import generate as rollout
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.serve import batching
from selfevolve_jax.serve.batching import Job, Stopped
from selfevolve_jax.serve.server import serve as answer
from tests import seeing

ROOT = Path(__file__).resolve().parents[2]
TEXT = seeing.tokenizer()
MODEL = ModelConfig(
    vocab_size=len(TEXT), d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=48
)
STOPS = (seeing.TEXT_END, seeing.TURN_END)
# Two slots fewer than one request asks for below, and few sizes of the cache, so that little compiles.
SLOTS, CONTEXT = 4, 128
HEAD, TAIL = "<|im_start|>system\nHelp.<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n"
CALL = '\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n'
SAID = ("I add.\n", "<tool_call>", CALL, "</tool_call>")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def chat_ids(text):
    return TEXT.encode(f"{HEAD}<|im_start|>user\n{text}{TAIL}")


def made(model, tokenizer, fill, mesh):
    """A policy whose arrays fill(spec) gives."""
    specs = decoder.abstract_params(model)
    params = jax.tree.map(
        lambda spec, where: jax.device_put(fill(spec).astype(spec.dtype), where),
        specs,
        sharding.tree_shardings(specs, mesh),
    )
    return Policy(params, model, tokenizer, STOPS, 0)


@pytest.fixture(scope="module")
def policy(mesh1):
    rng = np.random.default_rng(0)
    return made(MODEL, TEXT, lambda s: rng.normal(s.fill, s.stddev or 0.1, s.shape), mesh1)


@contextlib.contextmanager
def serving(served):
    """The server in a thread: its address up to /v1."""
    found, up = {}, threading.Event()

    async def run():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def ready(port):
            found["url"] = f"http://127.0.0.1:{port}/v1"
            up.set()

        await answer(served, "127.0.0.1", 0, found["stop"], ready)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert up.wait(60)
    try:
        yield found["url"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()


@pytest.fixture(scope="module")
def url(policy, mesh1):
    with serving(make_served(policy, mesh1, "tiny", SLOTS, CONTEXT)) as url:
        yield url


def client_of(url, key="none"):
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as client:
        yield client


@pytest.fixture(scope="module")
def directly(policy, mesh1):
    """The engine: (texts, samples) of one prompt."""

    def draw(ids, n=1, seed=0, sampling=Sampling(), limit=24, stops=STOPS):  # noqa: B008
        samples = rollout(
            policy.params,
            [ids],
            [0],
            n,
            jax.random.key(seed),
            sampling,
            max_new_tokens=limit,
            stop_tokens=stops,
            cfg=MODEL,
            mesh=mesh1,
            config=RolloutConfig(slots=8, chunk=8),
        )
        return decode(TEXT, samples)[0], samples

    return draw


def chat(client, text="Why?", **options):
    options = {"max_tokens": 24, "seed": 0, "temperature": 0.7} | options
    messages = options.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def complete(client, prompt="Why?", **options):
    options = {"max_tokens": 24, "seed": 0, "temperature": 0.7} | options
    return client.completions.create(model="tiny", prompt=prompt, **options)


def health(url):
    with urllib.request.urlopen(url.removesuffix("/v1") + "/health") as reply:
        return json.load(reply)


def post(url, body, path="/chat/completions", **headers):
    """(status, body) of a raw request."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, headers)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


WARM = Sampling(temperature=0.7)


def test_a_chat_is_the_engines_sample_of_the_templates_text(client, directly):
    for seed, options, sampling in (
        (0, {"temperature": 0}, Sampling(temperature=0.0)),
        (3, {}, WARM),
        (4, {"top_p": 0.8, "extra_body": {"top_k": 9, "min_p": 0.01}}, Sampling(0.7, 0.8, 9, 0.01)),
    ):
        got = chat(client, seed=seed, **options)
        (want,), samples = directly(chat_ids("Why?"), seed=seed, sampling=sampling)
        choice = got.choices[0]
        assert choice.message.content == want and choice.message.role == "assistant"
        assert choice.finish_reason == ("stop" if samples.stopped_RxG[0, 0] else "length")
        n = int(samples.lengths_RxG[0, 0])
        assert got.usage.model_dump(exclude_none=True) == {
            "prompt_tokens": len(chat_ids("Why?")),
            "completion_tokens": n,
            "total_tokens": len(chat_ids("Why?")) + n,
        }


def test_a_stop_token_ends_the_answer_and_is_counted(client, directly):
    """Seeds are tried until one ends by itself."""
    seeds = range(40)
    seed = next(s for s in seeds if directly(chat_ids("Why?"), seed=s)[1].stopped_RxG[0, 0])
    (want,), samples = directly(chat_ids("Why?"), seed=seed)
    got = chat(client, seed=seed, temperature=1)
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == (want, "stop")
    assert got.usage.completion_tokens == samples.lengths_RxG[0, 0]


def test_n_and_several_prompts_are_the_samples_of_one_row(client, directly):
    """Six answers in four slots."""
    want, _ = directly(chat_ids("Why?"), n=6, seed=7, sampling=WARM)
    got = chat(client, n=6, seed=7)
    assert [c.message.content for c in got.choices] == want and len(set(want)) == 6
    assert [c.index for c in got.choices] == list(range(6))

    got = complete(client, ["Why?", "Who?"], n=2, seed=7)
    want = directly(TEXT.encode("Why?"), n=2, seed=7, sampling=WARM)[0]
    want += directly(TEXT.encode("Who?"), n=4, seed=7, sampling=WARM)[0][2:]
    assert [c.text for c in got.choices] == want
    assert got.usage.prompt_tokens == 8
    as_tokens = complete(client, [TEXT.encode("Why?"), TEXT.encode("Who?")], n=2, seed=7)
    assert [c.text for c in as_tokens.choices] == want
    one = complete(client, TEXT.encode("Why?"), seed=7)
    assert one.choices[0].text == want[0]


def test_a_prompt_of_many_pieces_is_read_whole(policy, mesh1, directly, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 16)
    ids = np.random.default_rng(1).integers(7, 200, 57).tolist()
    with (
        serving(make_served(policy, mesh1, "tiny", SLOTS, CONTEXT)) as url,
        client_of(url) as client,
    ):
        for n in (57, 33, 17, 1):
            got = complete(client, ids[:n], temperature=0)
            assert got.choices[0].text == directly(ids[:n], sampling=Sampling(0.0))[0][0]


def streamed(stream):
    """(texts by choice, finish reasons by choice, all pieces)."""
    texts, ends, parts = {}, {}, []
    for part in stream:
        parts.append(part)
        for choice in part.choices:
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (text or "")
            if choice.finish_reason:
                assert choice.index not in ends
                ends[choice.index] = choice.finish_reason
    return texts, ends, parts


def test_a_stream_adds_up_to_the_answer(client):
    for ask, n in ((chat, 3), (complete, 3), (chat, 1)):
        whole = ask(client, n=n, seed=2)
        stream = ask(client, n=n, seed=2, stream=True, stream_options={"include_usage": True})
        texts, ends, parts = streamed(stream)
        shown = [c.message.content if ask is chat else c.text for c in whole.choices]
        assert texts == dict(enumerate(shown))
        assert ends == {c.index: c.finish_reason for c in whole.choices}
        assert parts[-1].choices == [] and parts[-1].usage == whole.usage
        assert all(part.usage is None for part in parts[:-1])
        assert len({part.id for part in parts}) == 1
        assert sum(bool(p.choices) for p in parts) > 2 * n, "it came in pieces"


def test_the_stream_ends_on_done(url):
    body = {"prompt": "Why?", "stream": True, "seed": 1}
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        events = reply.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


def test_a_stop_string_cuts_the_answer_and_never_shows(client, directly):
    ids = chat_ids("Why?")
    (text,), samples = directly(ids, seed=3, sampling=WARM)
    # Two characters of one byte from the midst, over the border of a chunk.
    at = next(i for i in range(6, len(text) - 2) if text[i : i + 2].isascii())
    mark = text[at : at + 2]
    want = text[: text.index(mark)]
    tokens = samples.tokens_RxGxM[0, 0].tolist()
    n = next(n for n in range(1, len(tokens)) if mark in TEXT.decode(tokens[:n]))
    got = chat(client, seed=3, stop=[mark, "never"])
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == (want, "stop")
    assert got.usage.completion_tokens == n < samples.lengths_RxG[0, 0]
    texts, ends, _ = streamed(chat(client, seed=3, stop=mark, stream=True))
    assert (texts, ends) == ({0: want}, {0: "stop"})


def test_logprobs_are_the_models_own(client, policy, directly):
    """Of the whole text in one pass without a cache, whatever the sampling."""
    ids = chat_ids("Why?")
    options = {"seed": 3, "extra_body": {"top_k": 20}, "logprobs": True, "top_logprobs": 5}
    got = chat(client, **options)
    tokens = directly(ids, seed=3, sampling=Sampling(0.7, 1.0, 20))[1].tokens_RxGxM[0, 0].tolist()
    whole = np.asarray([[*ids, *tokens]])
    at, zeros = np.arange(whole.size)[None], np.zeros_like(whole)
    hidden = decoder.forward(policy.params, whole, at, zeros, zeros, MODEL)
    logprobs = jax.nn.log_softmax(decoder.logits(policy.params, hidden[0], MODEL))
    own = np.asarray(logprobs)[len(ids) - 1 : -1]
    content = got.choices[0].logprobs.content
    n = got.usage.completion_tokens - (got.choices[0].finish_reason == "stop")
    assert len(content) == n > 8
    for i, entry in enumerate(content):
        best = np.sort(own[i])[::-1][:5]
        assert entry.token == TEXT.decode([tokens[i]])
        assert entry.logprob == pytest.approx(own[i, tokens[i]], abs=1e-5)
        np.testing.assert_allclose([t.logprob for t in entry.top_logprobs], best, atol=1e-5)
        assert entry.bytes == (None if "\ufffd" in entry.token else list(entry.token.encode()))
    parts = [p.choices[0].logprobs for p in chat(client, **options, stream=True) if p.choices]
    flat = [entry.logprob for part in parts if part for entry in part.content]
    np.testing.assert_allclose(flat, [entry.logprob for entry in content], atol=1e-5)


def test_logprobs_of_completions_have_their_older_form(client):
    got = complete(client, "Why?", logprobs=2, n=2, seed=5)
    for choice in got.choices:
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs)
        for token, logprob, best in zip(
            found.tokens, found.token_logprobs, found.top_logprobs, strict=True
        ):
            assert best[token] >= logprob - 1e-6 and len(best) <= 3
        assert found.text_offset == np.cumsum([0, *map(len, found.tokens)])[:-1].tolist()
    assert chat(client).choices[0].logprobs is None


def test_on_eight_devices_the_answers_are_those_of_one(policy, directly):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
    specs = sharding.tree_shardings(decoder.abstract_params(MODEL), mesh)
    placed = replace(policy, params=jax.device_put(policy.params, specs))
    with (
        serving(make_served(placed, mesh, "tiny", SLOTS, CONTEXT)) as url,
        client_of(url) as client,
    ):
        got = complete(client, "Why?", n=9, seed=7, logprobs=2)
    want = directly(TEXT.encode("Why?"), n=9, seed=7, sampling=WARM)[0]
    assert [c.text for c in got.choices] == want


# --- many at a time ------------------------------------------------------------------------------


def sixteen():
    """Requests that differ in all that may differ."""
    asks = []
    for i in range(16):
        text = "Why is that not so, and who says it?"[: 3 + 2 * i]
        options = {"temperature": 0.0 if i % 3 == 0 else 0.5 + i / 16, "max_tokens": 9 + i}
        options |= {"seed": i, "top_p": 0.9 if i % 2 else 1.0}
        if i % 5 == 0:
            options |= {"logprobs": True}
        asks.append((text, options))
    return asks


def test_sixteen_at_a_time_are_what_they_are_alone(url, client):
    def alone(text, options):
        got = chat(client, text, **options).choices[0]
        return got.message.content, got.finish_reason

    async def together():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as several:
            return await asyncio.gather(*(one(several, *ask) for ask in sixteen()))

    async def one(several, text, options):
        messages = [{"role": "user", "content": text}]
        if options["seed"] % 4:
            got = await several.chat.completions.create(model="tiny", messages=messages, **options)
            return got.choices[0].message.content, got.choices[0].finish_reason
        stream = await several.chat.completions.create(
            model="tiny", messages=messages, stream=True, **options
        )
        text, end = "", None
        async for part in stream:
            text += part.choices[0].delta.content or ""
            end = part.choices[0].finish_reason or end
        return text, end

    want = [alone(*ask) for ask in sixteen()]
    assert len(set(want)) == 16
    assert asyncio.run(together()) == want
    assert asyncio.run(together()) == want


def test_a_request_joins_what_is_running(policy, mesh1, url, client, monkeypatch):
    """While a long answer is written a short one begins and ends."""
    first = next(
        seed
        for seed in range(40)
        if complete(client, [30], max_tokens=100, seed=seed).usage.completion_tokens > 80
    )
    decode_chunk, sizes, gate = decoding.decode_chunk, [], threading.Event()

    def watched(params, slots, *args, **kwargs):
        sizes.append(slots.position.shape[0])
        if len(sizes) == 2:  # the first answer is on its way
            gate.wait(60)
        return decode_chunk(params, slots, *args, **kwargs)

    monkeypatch.setattr(decoding, "decode_chunk", watched)
    ends = []

    def long():
        ends.append(("long", complete(client, [30], max_tokens=100, seed=first).usage))

    thread = threading.Thread(target=long)
    thread.start()
    while len(sizes) < 2:
        time.sleep(0.01)
    other = threading.Thread(
        target=lambda: ends.append(("short", complete(client, [31], max_tokens=1).usage))
    )
    other.start()
    while health(url)["waiting"] == 0:
        time.sleep(0.01)
    gate.set()
    thread.join()
    other.join()
    assert [name for name, _ in ends] == ["short", "long"]
    assert sizes[:4] == [1, 1, 2, 1], "it came, and left its slot"


def test_nothing_compiles_once_the_buckets_are_warm(url, client):
    def all_kinds(shift):
        for i in (1, 3, 4):
            chat(client, "Why? "[shift:], n=i, seed=i + shift, temperature=0.3 + shift, top_p=0.9)
        complete(client, "So " * (4 + shift), max_tokens=5 + shift, temperature=0)
        complete(client, "Who", logprobs=2 + shift, stop="x" * (1 + shift))

    all_kinds(0)
    before = health(url)["compilations"]
    for shift in (1, 2):
        all_kinds(shift)
    assert health(url)["compilations"] == before > 0


class Slow:
    """decode_chunk as it is, with a pause, counted."""

    def __init__(self, monkeypatch):
        self.calls, self.real = 0, decoding.decode_chunk
        monkeypatch.setattr(decoding, "decode_chunk", self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        time.sleep(0.05)
        return self.real(*args, **kwargs)


@pytest.fixture(scope="module")
def endless(mesh1):
    """A policy that writes the same letter for ever, and a long context."""
    model = replace(MODEL, d_model=len(TEXT))

    def fill(spec):
        if spec.axes == ("vocab", "embed"):
            return np.eye(len(TEXT))
        return np.full(spec.shape, spec.fill)

    policy = made(model, TEXT, fill, mesh1)
    head = np.zeros((len(TEXT), len(TEXT)), np.float32)
    head[:, TEXT.encode("a")[0]] = 10
    policy = replace(policy, params=replace(policy.params, head=jnp.asarray(head)))
    with serving(make_served(policy, mesh1, "tiny", SLOTS, 2048)) as url:
        yield url


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_lets_its_slots_go(endless, monkeypatch, stream):
    slow = Slow(monkeypatch)
    with client_of(endless) as client:
        if stream:
            reply = complete(client, "b", max_tokens=2000, n=6, stream=True)
            next(iter(reply))
            reply.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                complete(client.with_options(timeout=1.0), "b", max_tokens=2000, n=6)
        while any(health(endless)[name] for name in ("running", "waiting")):
            time.sleep(0.02)
        assert slow.calls < 2000 / 8, "its answer was not written to the end"
        assert complete(client, "b", max_tokens=5).choices[0].text == "aaaaa"


def test_a_failing_device_is_told_and_the_next_request_finds_it_well(client, directly, monkeypatch):
    real, fail = decoding.decode_chunk, iter([True, False, True])

    def broken(*args, **kwargs):
        if next(fail, False):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(decoding, "decode_chunk", broken)
    with pytest.raises(openai.InternalServerError, match="RESOURCE_EXHAUSTED") as caught:
        chat(client, n=3)
    assert caught.value.status_code == 500
    with pytest.raises(openai.APIError, match="RESOURCE_EXHAUSTED"):  # in the midst of a stream
        list(chat(client, stream=True, seed=3))
    got = chat(client, seed=3)
    assert got.choices[0].message.content == directly(chat_ids("Why?"), seed=3, sampling=WARM)[0][0]


# --- tools ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caller(mesh1):
    """A server of a model that says SAID after every line: each token has one successor."""
    tokenizer = seeing.tokenizer("{% if tools %}{{ tools | tojson }}{% endif %}" + seeing.TEMPLATE)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in SAID])
    V = len(tokenizer)
    model = replace(MODEL, vocab_size=V, d_model=V)

    def fill(spec):
        return np.eye(V) if spec.axes == ("vocab", "embed") else np.full(spec.shape, spec.fill)

    policy = made(model, tokenizer, fill, mesh1)
    line = tokenizer.encode("a\n")[-1]
    chain = [line, *tokenizer.convert_tokens_to_ids(list(SAID)), seeing.TURN_END]
    head = np.zeros((V, V), np.float32)
    for token, after in itertools.pairwise(chain):
        head[token, after] = 10
    policy = replace(policy, params=replace(policy.params, head=jnp.asarray(head)))
    with serving(make_served(policy, mesh1, "tiny", SLOTS, 512)) as url, client_of(url) as client:
        yield client


def test_calls_come_as_tool_calls(caller):
    choice = chat(caller, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I add."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add") and call.id
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}
    # And they go back, with what they gave.
    messages = [
        {"role": "user", "content": "1 + 2?"},
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "3"},
    ]
    assert chat(caller, tools=TOOLS, messages=messages).choices[0].message.tool_calls


def test_calls_in_a_stream(caller):
    texts, ends, parts = streamed(chat(caller, tools=TOOLS, stream=True, n=2))
    assert texts == dict.fromkeys((0, 1), "I add.") and ends == dict.fromkeys((0, 1), "tool_calls")
    calls = [c for p in parts for choice in p.choices for c in choice.delta.tool_calls or []]
    assert [(c.index, c.function.name) for c in calls] == [(0, "add")] * 2
    assert json.loads(calls[0].function.arguments) == {"a": 1, "b": 2}


def test_without_tools_a_call_is_text(caller):
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = chat(caller, **options).choices[0]
        assert choice.finish_reason == "stop" and choice.message.tool_calls is None
        assert choice.message.content == "".join(SAID)


def test_a_call_that_was_cut_off_is_text(caller):
    choice = chat(caller, tools=TOOLS, max_tokens=2).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "".join(SAID[:2]))


# --- mistakes ------------------------------------------------------------------------------------


def test_lengths_that_do_not_fit_are_refused_with_the_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, [20] * 100, max_tokens=29)
    assert caught.value.code == "context_length_exceeded"
    for number in ("128 tokens", "129 tokens", "100 in the prompt", "29 for the answer"):
        assert number in caught.value.message
    with pytest.raises(openai.BadRequestError, match="128 tokens"):
        chat(client, "x" * 200)
    got = complete(client, [20] * 100, max_tokens=28)
    assert got.usage.total_tokens <= 128
    # Without a limit a chat has the rest of the context.
    for seed in range(9):
        got = chat(client, seed=seed, max_tokens=None, temperature=1.5)
        assert (got.usage.total_tokens == 128) == (got.choices[0].finish_reason == "length")


def test_errors_have_openais_form(url, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature=-1)
    assert caught.value.param == "temperature" and "temperature=-1" in caught.value.message
    bad = [
        (b"{", "no JSON"),
        (b"[]", "JSON object"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
        ({"messages": "hi"}, "messages must be"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "no Unicode"),
    ]
    for body, said in bad:
        status, error = post(url, body)
        assert status == 400 and said in error["error"]["message"], error
        assert error["error"]["type"] == "invalid_request_error"
    for body in ({"prompt": [len(TEXT)]}, {"prompt": [-1]}, {"prompt": [[]]}, {"prompt": ""}):
        assert post(url, body, "/completions")[0] == 400
    assert post(url, {}, "/nothing")[0] == 404 and post(url, {}, "/models")[0] == 405
    assert post(url, b"x" * (33 << 20))[0] == 413


def test_models_are_listed(client):
    (card,) = client.models.list()
    assert card.id == "tiny" and card.max_model_len == CONTEXT
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_key_is_asked_for_where_there_is_one(policy, mesh1):
    with serving(make_served(policy, mesh1, "tiny", SLOTS, CONTEXT, key="secret")) as url:
        with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with client_of(url, "secret") as client:
            assert client.models.list().data[0].id == "tiny"
        assert post(url, {})[0] == 401 and health(url)["status"] == "ok"


def test_a_job_for_a_stopped_server_fails_at_once(policy, mesh1):
    served = make_served(policy, mesh1, "tiny", SLOTS, CONTEXT)
    served.batcher.stop()
    told = []
    served.batcher.submit(Job([5], 2, WARM, 0, 4, STOPS, lambda i, what: told.append((i, what))))
    assert [i for i, _ in told] == [0, 1]
    assert all(isinstance(what, Stopped) for _, what in told)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"slots": 0}, "slots=0"),
        ({"port": 70000}, "port=70000"),
        ({"max_context": 1}, "max_context=1"),
        ({"api_key_env": "NOT_SET_HERE"}, "api_key_env=NOT_SET_HERE"),
    ],
)
def test_options_are_checked_before_any_weight_is_read(options, said):
    with pytest.raises(UserError, match=said):
        serve(Serve("nowhere", **options))


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "policy"
    checkpoint.save_policy(policy, folder)
    return folder


def test_a_port_that_is_taken_is_one_box(folder, url, mesh1, monkeypatch, capsys):
    monkeypatch.setattr(sharding, "make_mesh", lambda config: mesh1)
    port = url.removesuffix("/v1").rpartition(":")[2]
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(folder), "--port", port])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("╭") == 1 and "listened" in err


def test_the_command_serves_and_ends_cleanly_on_a_signal(folder):
    """SIGTERM in the midst of a stream: its client is told, and the process ends with 0."""
    command = [sys.executable, "-m", "launch.cli", "serve", str(folder), "--port", "0"]
    command += ["--name", "tiny", "--max-context", "4096"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(
            "serving tiny, context 4096; export OPENAI_BASE_URL=http://127.0.0.1:"
        )
        url = line.split("OPENAI_BASE_URL=")[1].split()[0]
        with client_of(url) as client:
            stream = iter(complete(client, "Why?", n=16, max_tokens=4000, stream=True))
            next(stream)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="stopping"):
                list(stream)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "stopped\n"), err
    assert "Traceback" not in err
