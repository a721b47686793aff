"""One supervised training of a policy, kept in a policy folder and resumed at any step: the agent's and
the reward model's alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax
import optax
from etils import epath
from jax.sharding import Mesh

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, run_dir, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.sft import supervised_step
from selfevolve_jax.state import abstract_state, init_state
from selfevolve_jax.trainable import Mask, split, trainable_mask

TRAINED = "trained.json"  # there once a training has ended
_CHUNK = 256  # tokens whose [V] scores exist at a time


@dataclass(frozen=True)
class Plan:
    """What decides the form of a training's state (`state.abstract_state`) and its length in steps."""

    steps: int
    tx: optax.GradientTransformation
    trainable: Mask


def plan(model: ModelConfig, steps: int, optimizer: OptimizerConfig, train_vision: bool) -> Plan:
    trainable = trainable_mask(model, train_vision)
    learnt = split(decoder.abstract_params(model), trainable)[0]
    # A constant rate is the same for any length, so a run of many trainings compiles its step once.
    total = 0 if optimizer.schedule == "constant" else steps
    return Plan(steps, make_optimizer(optimizer, total, decay_mask(learnt)), trainable)


def check_batch(name: str, batch: int, accumulate: int, mesh: Mesh) -> None:
    """UserError where a batch does not divide over the mesh and a step's pieces. name: the option that
    the two belong to ("agent."), or nothing."""
    ways = sharding.batch_ways(mesh)
    pieces = ways * accumulate
    if batch % pieces:
        raise UserError(
            f"{name}batch={batch} does not divide over {ways} batch shards (mesh.data × mesh.fsdp) × "
            f"{name}accumulate={accumulate} = {pieces}. Make it a multiple of {pieces}."
        )


def check_length(name: str, epochs: float | None, steps: int | None) -> None:
    """UserError where both are given, or one that is no length. name: as in `check_batch`."""
    if epochs is not None and steps is not None:
        raise UserError(
            f"{name}epochs={epochs} and {name}steps={steps} both say how long a training is. Fix: "
            f"--{name}steps None, or leave the epochs out."
        )
    if epochs is not None and not epochs > 0:
        raise UserError(f"{name}epochs={epochs} must be above 0.")
    if steps is not None and steps < 1:
        raise UserError(f"{name}steps={steps} must be at least 1.")


def train_policy(
    policy: Policy,
    folder: epath.PathLike,
    made: Plan,
    batches: Callable[[int], Iterable[Batch]],
    mesh: Mesh,
    accumulate: int = 1,
    save_every: int = 200,
    tell: Callable[[int, float], None] | None = None,
) -> Policy:
    """The policy after training on `batches(0)`, `made.steps` of them, -log P of the response tokens.

    batches(done): the batches after the first `done`, on the host. folder: becomes a policy folder,
    which has a checkpoint every `save_every` steps; `tell` is then called with the step and its loss. A
    training that was killed goes on from its last checkpoint, to the same weights; one that has ended
    is loaded. The policy given is left as it is.

    UserError where a gradient was not finite: a step that is skipped in silence would be no training.
    DiskError.
    """
    folder, main = epath.Path(folder), jax.process_index() == 0
    if (folder / TRAINED).exists():
        return replace(checkpoint.load_policy(folder, mesh), model=policy.model)
    if main:
        checkpoint.save_policy_files(
            folder, policy.model, policy.tokenizer, policy.stop_tokens, policy.images
        )
    checkpoints = checkpoint.open_checkpoints(folder / checkpoint.LATEST, 1)
    try:
        abstract = abstract_state(policy.model, made.tx, mesh, made.trainable)
        found = checkpoint.restore(checkpoints, abstract)
        state = (
            found[0]
            if found
            else init_state(policy.params, policy.model, made.tx, mesh, made.trainable)
        )
        done, constrain = int(state.step), sharding.constrainer(mesh)
        loss = found[1]["last_loss"] if found else None
        losses, finite = [], []
        for step, batch in enumerate(batches(done), done + 1):
            state, metrics = supervised_step(
                state,
                sharding.put_batch(batch, mesh),
                policy.model,
                made.tx,
                accumulate,
                _CHUNK,
                constrain,
                made.trainable,
            )
            losses.append(metrics["train/loss"])
            finite.append(metrics["train/finite"])
            if step == made.steps or step % save_every == 0:
                if not all(float(sharding.to_host(f)) for f in finite):
                    raise UserError(
                        f"training {folder}: a gradient was not finite by step {step}; "
                        "fix: a lower learning rate"
                    )
                loss = float(sharding.to_host(losses[-1]))
                losses.clear()
                finite.clear()
                checkpoint.save_async(checkpoints, state, step, {"last_loss": loss})
                if tell is not None:
                    tell(step, loss)
        checkpoint.finish(checkpoints)
    finally:
        checkpoint.close(checkpoints)
    if main:
        run_dir.write_json_atomic(folder / TRAINED, {"steps": made.steps, "last_loss": loss})
    return replace(checkpoint.load_policy(folder, mesh), model=policy.model)
