"""What a recipe would run, without touching anything: config, mesh, parameters, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import jax.numpy as jnp

from models import decoder
from models.params import count
from selfevolve_jax import run_dir, sharding, trainer
from selfevolve_jax.mm_upt.recipe import MMUPTRecipe
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.srt import levels
from selfevolve_jax.srt.recipe import SRTRecipe
from selfevolve_jax.starting_point import check_rollout, read_model
from selfevolve_jax.trainable import split, trainable_mask
from selfevolve_jax.ui_genie.recipe import UIGenieRecipe
from selfevolve_jax.ui_genie.training import check_batch


def describe(recipe: SRTRecipe | levels.LevelsRecipe | MMUPTRecipe) -> str:
    """The resolved config as JSON, then the figures. Raises what the run itself would refuse."""
    mesh, rollout_mesh = sharding.make_meshes(recipe.mesh)
    trainer.check_batch(recipe.trainer, mesh)
    model = read_model(recipe.policy)
    check_rollout(model, rollout_mesh)
    if recipe.trainer.lora.rank and not model.lora.rank:
        model = replace(model, lora=recipe.trainer.lora)
    specs = decoder.abstract_params(model)
    sharding.tree_shardings(specs, mesh)
    config, n = recipe.trainer, count(specs)
    weights = n * jnp.dtype(model.param_dtype).itemsize
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    # Parameters, and a reference policy where there is a KL; for those that are trained a gradient
    # and AdamW's two moments.
    mine = count(split(specs, trainable_mask(model, config.train_vision))[0])
    copies = 1 + (config.grpo.kl_coef > 0) + 3 * mine / n
    training = weights * copies / ways
    batch = config.prompts_per_step * config.samples_per_prompt
    slots = min(config.rollout.slots, batch)
    per_token = 2 * model.n_layers * model.n_kv_heads * model.head_dim
    rollouts = rollout_mesh or mesh
    cache = slots * per_token * jnp.dtype(model.dtype).itemsize / rollouts.size
    return "\n".join(
        (
            json.dumps(run_dir.jsonable(recipe), indent=2),
            f"mesh         {dict(mesh.shape)} over {mesh.size} device(s)"
            + (f", rollouts {dict(rollouts.shape)} over {rollouts.size}" if rollout_mesh else ""),
            f"parameters   {n:,}" + (f", of which {mine:,} are trained" if mine < n else ""),
            f"batch        {batch:,} samples a step, up to {config.max_new_tokens:,} new tokens each",
            f"memory       {_bytes(training)} a device for parameters, gradients and optimiser",
            f"             {_bytes(cache * bucket(config.max_new_tokens))} a device for the rollout's "
            "cache at full length, prompts not counted",
            f"levels       {'; '.join(map(levels.describe, recipe.levels))}"
            if isinstance(recipe, levels.LevelsRecipe)
            else f"arms         {', '.join(recipe.arms)}",
        )
    )


def describe_ui_genie(recipe: UIGenieRecipe) -> str:
    """The same of UI-Genie, which trains two models of one size in turn."""
    mesh, model = sharding.make_mesh(recipe.mesh), read_model(recipe.policy)
    check_batch("agent.", recipe.agent.batch, recipe.agent.accumulate, mesh)
    specs = decoder.abstract_params(model)
    sharding.tree_shardings(specs, mesh)
    return "\n".join(
        (
            json.dumps(run_dir.jsonable(recipe), indent=2),
            f"mesh         {dict(mesh.shape)} over {mesh.size} device(s)",
            f"parameters   {count(specs):,} of the agent, and as many of the reward model",
            f"episodes     {len(recipe.explored) * recipe.starts:,} starts a round, "
            f"{len(recipe.tasks) * recipe.held_out:,} held out",
            f"arms         {', '.join(recipe.arms)}",
        )
    )


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError
