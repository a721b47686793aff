"""HTTP as OpenAI's API speaks it, in front of a `Batcher`."""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from aiohttp import web

from selfevolve_jax.serve.batching import Batcher, Drawn, Job, Stopped
from selfevolve_jax.serve.chat import chat_tokens, text_tokens
from selfevolve_jax.serve.protocol import Asked, Refused, check_length, error_body, parse
from selfevolve_jax.serve.text import Answer

_LARGEST_REQUEST = 32 << 20  # bytes


class Failed(Exception):
    """The device could not finish a sample."""


@dataclass(frozen=True)
class Served:
    """What answers: a policy behind a batcher. name: of the model. context: tokens of a prompt and its
    answer. stops, chat_stops: the tokens that end a plain text and an assistant's turn. key: that
    requests must carry, or None."""

    batcher: Batcher
    tokenizer: Any
    name: str
    context: int
    vocab_size: int
    stops: tuple[int, ...]
    chat_stops: tuple[int, ...]
    image_token: int | None = None
    key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class _Choice:
    """One answer of a request: where its tokens come from, and what became of them."""

    job: Job
    i: int
    answer: Answer
    entries: list[dict[str, Any]] = field(default_factory=list)  # log-probabilities, a token each
    offset: int = 0  # characters before the next entry


def application(served: Served) -> web.Application:
    """The routes. Every error has OpenAI's form."""

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        return await _guarded(served, request, handler)

    app = web.Application(client_max_size=_LARGEST_REQUEST, middlewares=[guard])
    card = {"id": served.name, "object": "model", "created": served.created}
    card |= {"owned_by": "selfevolve", "max_model_len": served.context}

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", **served.batcher.counts()})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [card]})

    async def model(request: web.Request) -> web.Response:
        if request.match_info["name"] != served.name:
            raise Refused(
                f"model {request.match_info['name']!r} is not served here; {served.name!r} is.",
                *("model", 404, "model_not_found"),
            )
        return web.json_response(card)

    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{name:.+}", model)
    app.router.add_post("/v1/chat/completions", partial(_complete, served, True))
    app.router.add_post("/v1/completions", partial(_complete, served, False))
    return app


async def _guarded(served: Served, request: web.Request, handler: Any) -> web.StreamResponse:
    """The key, and errors as JSON."""
    try:
        if served.key is not None and request.path != "/health":
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, b"Bearer " + served.key.encode()):
                raise Refused("the API key is missing or wrong.", None, 401, "invalid_api_key")
        return await handler(request)
    except Refused as error:
        return web.json_response(error.body(), status=error.status)
    except web.HTTPException as error:
        said = f"{request.method} {request.path}: {error.reason}"
        return web.json_response(error_body(said, "invalid_request_error"), status=error.status)
    except Stopped as error:
        return web.json_response(error_body(str(error), "server_error"), status=503)
    except Failed as error:
        return web.json_response(error_body(str(error), "server_error"), status=500)
    except Exception as error:  # a mistake of ours
        traceback.print_exc(file=sys.stderr)
        return web.json_response(error_body(f"internal: {error!r}", "server_error"), status=500)


async def _complete(served: Served, chat: bool, request: web.Request) -> web.StreamResponse:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {error}") from error
    asked = parse(body, chat=chat, model=served.name)
    # In a thread: a long text takes long, and other answers go on.
    prompts = await asyncio.to_thread(_prompts, served, asked)
    with _begun(served, asked, prompts) as (choices, events):
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        if asked.stream:
            return await _stream(served, request, asked, prompts, choices, events, head)
        async for _ in _growing(served, asked, choices, events):
            pass
        shown = [_whole(asked, index, choice) for index, choice in enumerate(choices)]
        return web.json_response(head | {"choices": shown, "usage": _usage(prompts, choices)})


def _prompts(served: Served, asked: Asked) -> list[tuple[list[int], int]]:
    """(tokens, length of the answer at most) of each prompt."""
    if asked.chat:
        found = [chat_tokens(served.tokenizer, asked.prompt, asked.tools)]
    else:
        found = [
            text_tokens(served.tokenizer, p) if isinstance(p, str) else list(p)
            for p in asked.prompt
        ]
    for tokens in found:
        if any(not 0 <= t < served.vocab_size for t in tokens):
            raise Refused(f"a token is not of 0 to {served.vocab_size - 1}.", "prompt")
        if served.image_token in tokens:
            raise Refused("the prompt holds an image's token; only text is served.", "prompt")
    return [(t, check_length(len(t), asked.max_tokens, served.context)) for t in found]


@contextmanager
def _begun(
    served: Served, asked: Asked, prompts: list[tuple[list[int], int]]
) -> Iterator[tuple[list[_Choice], asyncio.Queue]]:
    """The request's samples under way: its choices, and the queue of (choice, what came). However the
    block is left, what is not finished then is let go."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue()

    def tell(base: int, i: int, what: Drawn | Exception) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (base + i, what))

    choices: list[_Choice] = []
    jobs = []
    for number, (tokens, limit) in enumerate(prompts):
        job = Job(
            prompt=tokens,
            n=asked.n,
            sampling=asked.sampling,
            seed=asked.seed,
            max_new_tokens=limit,
            stop_tokens=served.chat_stops if asked.chat else served.stops,
            tell=partial(tell, number * asked.n),
            first=number * asked.n,
            logprobs=asked.logprobs is not None,
        )
        jobs.append(job)
        choices += [
            _Choice(job, i, Answer(served.tokenizer, asked.stop, bool(asked.tools)))
            for i in range(asked.n)
        ]
    try:
        for job in jobs:
            served.batcher.submit(job)
        yield choices, events
    finally:
        for choice in choices:
            choice.job.drop(choice.i)


async def _growing(
    served: Served, asked: Asked, choices: list[_Choice], events: asyncio.Queue
) -> AsyncIterator[tuple[int, str, list[dict[str, Any]]]]:
    """(choice, new text, new log-probabilities) until all choices are finished. Failed or Stopped where
    the device cannot go on."""
    left = len(choices)
    while left:
        index, what = await events.get()
        choice = choices[index]
        if choice.answer.finish is not None:
            continue  # drawn before the stop string was seen
        if isinstance(what, Stopped):
            raise what
        if isinstance(what, Exception):
            raise Failed(f"the answer could not be computed: {what}") from what
        before = len(choice.answer.tokens)
        text = choice.answer.feed(what.tokens, what.ended)
        kept = len(choice.answer.tokens) - before
        entries = []
        if asked.logprobs is not None:
            # A stop token is no part of the text, and has no entry.
            kept -= what.ended == "stop" and kept == len(what.tokens)
            entries = [_entry(served, what, j) for j in range(kept)]
            choice.entries += entries
        if choice.answer.finish is not None:
            choice.job.drop(choice.i)
            left -= 1
        yield index, text, entries


def _entry(served: Served, drawn: Drawn, j: int) -> dict[str, Any]:
    """A token's log-probability and those of the likeliest, as a chat shows them."""
    assert drawn.logprobs is not None
    assert drawn.top_tokens is not None and drawn.top_logprobs is not None

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = served.tokenizer.decode([token])
        # Of a token that is a part of a character the bytes are not known here.
        data = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": float(np.maximum(logprob, -9999.0)), "bytes": data}

    best = zip(drawn.top_tokens[j].tolist(), drawn.top_logprobs[j].tolist(), strict=True)
    return one(drawn.tokens[j], float(drawn.logprobs[j])) | {
        "top_logprobs": [one(token, logprob) for token, logprob in best]
    }


def _logprobs(asked: Asked, choice: _Choice, entries: list[dict[str, Any]]) -> Any:
    """The entries in the form of the endpoint that was asked."""
    if asked.logprobs is None:
        return None
    entries = [e | {"top_logprobs": e["top_logprobs"][: asked.logprobs]} for e in entries]
    if asked.chat:
        return {"content": entries, "refusal": None}
    offsets = []
    for entry in entries:
        offsets.append(choice.offset)
        choice.offset += len(entry["token"])
    return {
        "tokens": [e["token"] for e in entries],
        "token_logprobs": [e["logprob"] for e in entries],
        "top_logprobs": [
            # With the drawn one, as OpenAI's.
            {x["token"]: x["logprob"] for x in [*e["top_logprobs"], e]}
            for e in entries
        ],
        "text_offset": offsets,
    }


def _calls(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    calls = answer.calls if asked.parallel_calls else answer.calls[:1]
    return [
        {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": call}
        for call in calls
    ]


def _finish(answer: Answer) -> str | None:
    return "tool_calls" if answer.calls and answer.finish == "stop" else answer.finish


def _whole(asked: Asked, index: int, choice: _Choice) -> dict[str, Any]:
    """A finished choice."""
    shown: dict[str, Any] = {"index": index, "finish_reason": _finish(choice.answer)}
    shown["logprobs"] = _logprobs(asked, choice, choice.entries)
    if not asked.chat:
        return shown | {"text": choice.answer.content}
    calls = _calls(asked, choice.answer)
    message: dict[str, Any] = {"role": "assistant", "content": choice.answer.content}
    if calls:
        message |= {"content": choice.answer.content or None, "tool_calls": calls}
    return shown | {"message": message}


def _usage(prompts: list[tuple[list[int], int]], choices: list[_Choice]) -> dict[str, int]:
    read = sum(len(tokens) for tokens, _ in prompts)
    written = sum(len(choice.answer.tokens) for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


async def _stream(
    served: Served,
    request: web.Request,
    asked: Asked,
    prompts: list[tuple[list[int], int]],
    choices: list[_Choice],
    events: asyncio.Queue,
    head: dict[str, Any],
) -> web.StreamResponse:
    """Server-sent events, one for each piece of text; then the usage if asked for, then [DONE]."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    if asked.chat:
        head = head | {"object": "chat.completion.chunk"}
    extra = {"usage": None} if asked.include_usage else {}

    async def send(index: int, delta: Any, logprobs: Any = None, finish: Any = None) -> None:
        choice = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        choice |= {"delta": delta} if asked.chat else {"text": delta}
        await event(head | {"choices": [choice]} | extra)

    async def event(data: Any) -> None:
        await response.write(f"data: {json.dumps(data)}\n\n".encode())

    try:
        if asked.chat:
            for index in range(len(choices)):
                await send(index, {"role": "assistant", "content": ""})
        async for index, text, entries in _growing(served, asked, choices, events):
            choice = choices[index]
            if text or entries:
                delta = {"content": text} if asked.chat else text
                await send(index, delta, _logprobs(asked, choice, entries))
            if choice.answer.finish is not None:
                calls = _calls(asked, choice.answer) if asked.chat else []
                for number, call in enumerate(calls):
                    await send(index, {"tool_calls": [{"index": number} | call]})
                await send(index, {} if asked.chat else "", finish=_finish(choice.answer))
        if asked.include_usage:
            await event(head | {"choices": [], "usage": _usage(prompts, choices)})
    except (Failed, Stopped) as error:
        await event(error_body(str(error), "server_error"))
    except ConnectionResetError:  # the client has gone; `_begun` lets its samples go
        return response
    else:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def serve(
    served: Served, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]
) -> None:
    """Answers until `stop` is set; then ends the batcher, so that what is not finished gets an error,
    and closes. ready: called with the port once requests are taken. OSError for an address that cannot
    be had."""
    # A handler ends when its client goes, and with it what it had asked for.
    runner = web.AppRunner(
        application(served), handler_cancellation=True, access_log=None, shutdown_timeout=5.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        ready(runner.addresses[0][1])
        await stop.wait()
        await site.stop()
    finally:
        await asyncio.to_thread(served.batcher.stop)
        await runner.cleanup()
