"""google-tunix's sampler and its GRPO learner on JAX, asked by `worker.serve`."""

from __future__ import annotations

import functools
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import AutoTokenizer
from tunix.generate import sampler as sampler_lib
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from worker import Paced, reward, serve, useful

STATE: dict[str, Any] = {}


def load(folder: str, dtype: str, threads: int) -> dict[str, Any]:
    """threads: XLA takes all cores by itself."""
    sizes = json.loads((Path(folder) / "config.json").read_text())
    config = llama.ModelConfig(
        num_layers=sizes["num_hidden_layers"],
        vocab_size=sizes["vocab_size"],
        embed_dim=sizes["hidden_size"],
        hidden_dim=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        head_dim=sizes["hidden_size"] // sizes["num_attention_heads"],
        num_kv_heads=sizes["num_key_value_heads"],
        rope_theta=int(sizes.get("rope_theta") or sizes["rope_parameters"]["rope_theta"]),
        norm_eps=sizes["rms_norm_eps"],
        weight_tying=sizes["tie_word_embeddings"],
    )
    # Its attention leaves the config's theta out and always rotates with its own default of a million
    # (0.1.7), which changes what the model says; the work is the same.
    llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=config.rope_theta)
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = llama_params.create_model_from_safe_tensors(
        folder, config, mesh, dtype=getattr(jnp, dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # The chat template uses the stop token within prompts, so it cannot pad them.
    tokenizer.pad_token = "<|endoftext|>"
    STATE.update(config=config, mesh=mesh, model=model, tokenizer=tokenizer)
    versions = {name: metadata.version(name) for name in ("google-tunix", "jax", "flax")}
    return {"versions": versions}


def logprobs(prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Any]:
    """log p of every token of each answer after its prompt."""
    found = []
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt + answer + [0] * (width - len(prompt) - len(answer))
        mask = jnp.tril(jnp.ones((1, width, width), bool))
        scores = STATE["model"](jnp.array([ids]), jnp.arange(width)[None], None, mask)[0][0]
        logp = jax.nn.log_softmax(scores.astype(jnp.float32))
        at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found.append([float(logp[i, token]) for i, token in zip(at, answer, strict=True)])
    return {"logprobs": found}


def rollout(
    prompts: list[list[int]], samples: int, max_new_tokens: int, stop: int, batch: int, seed: int
) -> dict[str, Any]:
    """`samples` of each prompt, `batch` prompts at a time. The sampler knows no samples a prompt, so
    each prompt is given as often, as its own GRPO learner does."""
    tokenizer, config = STATE["tokenizer"], STATE["config"]
    width = max(map(len, prompts))
    if "sampler" not in STATE:
        STATE["sampler"] = sampler_lib.Sampler(
            STATE["model"],
            tokenizer,
            sampler_lib.CacheConfig(
                width + max_new_tokens, config.num_layers, config.num_kv_heads, config.head_dim
            ),
        )
    texts = [tokenizer.decode(p) for p in prompts]
    began = time.perf_counter()
    lengths: list[int] = []
    for start in range(0, len(prompts), batch):
        asked = [text for text in texts[start : start + batch] for _ in range(samples)]
        drawn = STATE["sampler"](
            asked,
            max_generation_steps=max_new_tokens,
            max_prompt_length=width,
            temperature=1.0,
            top_p=1.0,
            seed=seed + start,
            eos_tokens=[stop],
        )
        lengths += useful([np.asarray(t).tolist() for t in drawn.tokens], stop)
    return {"seconds": time.perf_counter() - began, "tokens": sum(lengths), "n": len(lengths)}


def grpo(
    texts: list[str], samples: int, max_new_tokens: int, rate: float, pieces: int
) -> dict[str, Any]:
    """Prepares the learner on these prompts; each `step` is then one of its steps on all of them."""
    from tunix.rl import rl_cluster as cluster_lib
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    STATE.pop("sampler", None)
    width = max(len(STATE["tokenizer"].encode(text)) for text in texts)
    lengths: list[int] = []

    def rewards(prompts, completions, **_):
        ids = STATE["tokenizer"](list(completions), add_special_tokens=False)["input_ids"]
        # The stop token is not in the text, and counts as it does for the others.
        lengths.extend(min(len(i) + 1, max_new_tokens) for i in ids)
        return [reward(text) for text in completions]

    cluster = cluster_lib.RLCluster(
        actor=STATE["model"],
        tokenizer=STATE["tokenizer"],
        cluster_config=cluster_lib.ClusterConfig(
            role_to_mesh={role: STATE["mesh"] for role in cluster_lib.Role},
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=cluster_lib.RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0)
                ),
                mini_batch_size=len(texts),
                train_micro_batch_size=len(texts) // pieces,
                rollout_micro_batch_size=len(texts),
                eval_every_n_steps=10_000,
                max_steps=10_000,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=max_new_tokens,
                max_prompt_length=width,
                kv_cache_size=width + max_new_tokens,
                temperature=1.0,
                top_p=1.0,
            ),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(num_generations=samples, num_iterations=1, beta=0.0),
        reward_fns=rewards,
    )

    def batches():
        """Where the learner asks for the next batch, the step before has ended."""
        first = True
        while True:
            if not first:
                jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
                STATE["paced"].done(tokens=sum(lengths))
            first = False
            lengths.clear()
            STATE["paced"].wait()
            yield {"prompts": np.array(texts)}

    STATE["paced"] = Paced(lambda: learner.train(batches()))
    return {"versions": {}}


def step() -> dict[str, Any]:
    return STATE["paced"].step()


if __name__ == "__main__":
    serve({"load": load, "logprobs": logprobs, "rollout": rollout, "grpo": grpo, "step": step})
