"""`selfevolve generate`: text from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import tyro

from selfevolve_jax import checkpoint, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import decode
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.engine import generate as rollout
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.tasks.prompts import Problem, tokenize_rows


@dataclass(frozen=True)
class Generate:
    """Continues a prompt.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best. prompt: the text to go on
    from. n: how many samples. chat: put the prompt into the tokenizer's chat template.
    """

    checkpoint: tyro.conf.Positional[str]
    prompt: str
    n: int = 1
    max_new_tokens: int = 256
    seed: int = 0
    chat: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def generate(options: Generate) -> list[str]:
    """Prints and returns the samples, one a line."""
    if options.n < 1 or options.max_new_tokens < 1:
        raise UserError(f"n={options.n} and max_new_tokens={options.max_new_tokens}: at least 1.")
    if not options.prompt:
        raise UserError('prompt="" is empty; there is nothing to go on from.')
    check_sampling(options.sampling)
    mesh = sharding.make_mesh(options.mesh)
    policy = checkpoint.load_policy(options.checkpoint, mesh)
    rows, _ = tokenize_rows(
        policy.tokenizer,
        [Problem(0, options.prompt)],
        name="--prompt",
        suffix="",
        chat=options.chat,
        system=None,
        max_prompt_tokens=1 << 20,
    )
    unknown = policy.tokenizer.unk_token_id
    if unknown is not None and unknown in rows[0].prompt_tokens:
        strange = {
            c
            for c in options.prompt
            if unknown in policy.tokenizer(c, add_special_tokens=False)["input_ids"]
        }
        raise UserError(
            f"prompt={options.prompt!r}: the policy's tokenizer does not know "
            f"{', '.join(map(repr, sorted(strange))) or 'a part of it'}. Leave it out."
        )
    samples = rollout(
        policy.params,
        [rows[0].prompt_tokens],
        [0],
        options.n,
        jax.random.key(options.seed),
        options.sampling,
        max_new_tokens=options.max_new_tokens,
        stop_tokens=policy.stop_tokens,
        cfg=policy.model,
        mesh=mesh,
        config=RolloutConfig(),
    )
    texts = decode(policy.tokenizer, samples)[0]
    for text in texts:
        print(text)
    return texts
