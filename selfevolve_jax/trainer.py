"""The loop: sample, judge, update, and keep or stop. Host code that reads from top to bottom.

What a resumed run needs is in its checkpoint: parameters, optimiser, step, data position, best
score so far. Random numbers need no state, as every key is folded from (seed, purpose, step, …). So a
run that was killed at any instant and resumed ends bit for bit where an undisturbed one ends.
"""

from __future__ import annotations

import math
import signal
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models import decoder
from models.config import LoraConfig, ModelConfig
from selfevolve_jax import checkpoint, compiles, evaluate, sharding, step_log
from selfevolve_jax import run_dir as files
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import add_images, build_batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.update import score as trainer_logprobs
from selfevolve_jax.grpo.update import update_step
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.registry import make_judge
from selfevolve_jax.metrics import MetricLog, Terminal
from selfevolve_jax.optimizer import (
    OptimizerConfig,
    decay_mask,
    learning_rate,
    make_optimizer,
)
from selfevolve_jax.rollout.engine import RolloutConfig, generate
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.state import abstract_state, add_adapters, init_state
from selfevolve_jax.tasks.base import Task, batch_at
from selfevolve_jax.trainable import split, trainable_mask, trains_vision

# Purposes of random keys; each is folded into the seed before anything else.
ROLLOUT, HELD_OUT, ADAPTERS = 1, 2, 3


class Interrupted(UserError):
    """SIGTERM or Ctrl-C: the state was saved. Code 143, what a shell reports of a terminated child."""

    exit_code = 143


class TrainingFailed(UserError):
    """The numbers broke; the last good checkpoint is kept."""

    exit_code = 1


@dataclass(frozen=True)
class TrainerConfig:
    """Defaults are SRT's published settings.

    samples_per_prompt: G, all of which vote. trained_per_prompt: how many of them are trained on,
    None for all. A batch is prompts_per_step × samples_per_prompt samples.
    vote_threshold: rows with a smaller majority fraction leave the loss.
    eval_every, save_every: in steps; both also happen at the end, and evaluation at the start.
    shared_prompt: how many samples of a prompt share one copy of it in the update; pack: several
    prompts in a row of training tokens. Both change the time a step takes, and not its numbers.
    lora: adapters are trained in place of the weights. train_vision: the vision tower too, where the
    policy has one; with shared_prompt=samples_per_prompt it then encodes each prompt once.
    """

    steps: int = 1000
    prompts_per_step: int = 16
    samples_per_prompt: int = 32
    trained_per_prompt: int | None = None
    max_new_tokens: int = 3072
    vote_threshold: float = 0.0
    eval_every: int = 50
    eval_samples: int = 32
    save_every: int = 50
    keep: int = 2
    shared_prompt: int = 1
    pack: bool = False
    train_vision: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        for name in (
            *("steps", "prompts_per_step", "samples_per_prompt", "max_new_tokens"),
            *("eval_every", "eval_samples", "save_every", "keep", "shared_prompt"),
        ):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)} must be at least 1.")
        if not 1 <= (self.trained_per_prompt or 1) <= self.samples_per_prompt:
            raise UserError(
                f"trainer.trained_per_prompt={self.trained_per_prompt} must be between 1 and "
                f"trainer.samples_per_prompt={self.samples_per_prompt}."
            )
        if not 0 <= self.vote_threshold <= 1:
            raise UserError(f"trainer.vote_threshold={self.vote_threshold} must be in [0, 1].")
        if self.samples_per_prompt % self.shared_prompt:
            raise UserError(
                f"trainer.shared_prompt={self.shared_prompt} does not divide "
                f"trainer.samples_per_prompt={self.samples_per_prompt}."
            )
        if self.train_vision and self.lora.rank:
            raise UserError(
                f"trainer.train_vision=True trains the whole vision tower, and trainer.lora.rank="
                f"{self.lora.rank} adapters alone. Use trainer.lora.vision for adapters in the tower."
            )
        check_sampling(self.sampling)
        if self.sampling.temperature == 0:
            raise UserError(
                "trainer.sampling.temperature=0: greedy samples of a prompt are all alike, so there "
                "is nothing to vote on. Use 1.0."
            )


@dataclass(frozen=True)
class Result:
    """Held-out figures by name; empty where the held-out rows have no gold. best: the step with the
    best held-out mean, {"step", "mean"}; its state is kept under best/."""

    before: dict[str, float]
    after: dict[str, float]
    best: dict[str, float] | None
    params: decoder.Params


def check_batch(config: TrainerConfig, mesh: Mesh) -> None:
    """UserError if the batch does not divide into its pieces; before any weight is loaded."""
    rows = config.prompts_per_step * config.samples_per_prompt // config.shared_prompt
    ways, grpo = sharding.batch_ways(mesh), config.grpo
    pieces = ways * grpo.accumulate * grpo.minibatches
    if rows % pieces:
        raise UserError(
            f"trainer.prompts_per_step={config.prompts_per_step} × trainer.samples_per_prompt="
            f"{config.samples_per_prompt} / trainer.shared_prompt={config.shared_prompt} = {rows} "
            f"rows do not divide over {ways} batch shards (mesh.data × mesh.fsdp) × "
            f"trainer.grpo.accumulate={grpo.accumulate} × trainer.grpo.minibatches="
            f"{grpo.minibatches} = {pieces}. Make the rows a multiple of {pieces}."
        )


def train(
    params: decoder.Params,
    model: ModelConfig,
    task: Task,
    judge_name: str,
    config: TrainerConfig,
    *,
    seed: int,
    mesh: Mesh,
    folder: epath.Path,
    title: str,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> Result:
    """Trains one policy on one judge's rewards, in the run directory `folder`.

    Goes on from the newest checkpoint in `folder` if there is one. The judge sees no gold unless it
    is the ground-truth judge; what gold there is serves the log and the held-out figures.
    Raises Interrupted after SIGTERM (state saved), TrainingFailed on non-finite numbers.
    """
    check_batch(config, mesh)
    constrain, main = sharding.constrainer(mesh), jax.process_index() == 0
    if config.pack and any(row.images for row in task.train):
        raise UserError(
            "trainer.pack=True: rows with images are not packed. Leave it out, and share each "
            f"prompt instead: trainer.shared_prompt={config.samples_per_prompt}."
        )
    grpo, sampling = config.grpo, config.sampling
    reference = params if grpo.kl_coef > 0 else None
    params, model = _with_adapters(params, model, config.lora, seed, mesh)
    trainable = trainable_mask(model, config.train_vision)
    tower_trained = trains_vision(model, config.train_vision)
    tx = make_optimizer(
        config.optimizer,
        config.steps * grpo.minibatches,
        decay_mask(split(decoder.abstract_params(model), trainable)[0]),
    )
    rate = learning_rate(config.optimizer, config.steps * grpo.minibatches)
    scored_first = grpo.minibatches > 1 or (grpo.kl_coef > 0 and grpo.kl_in == "reward")
    pieces = sharding.batch_ways(mesh) * grpo.accumulate * grpo.minibatches
    can_score = bool(task.held_out) and all(row.gold for row in task.held_out)
    gold_known = all(row.gold for row in task.train)
    temperature = np.float32(sampling.temperature)

    with ExitStack() as stack:
        equivalence = stack.enter_context(Equivalence(task.answer.equivalence))
        judge, needs_gold = make_judge(
            judge_name,
            task.answer,
            equivalence,
            seed=seed,
            threshold=config.vote_threshold,
            trained=config.trained_per_prompt,
        )
        if main:
            checkpoint.save_policy_files(
                folder, model, task.tokenizer, task.stop_tokens, task.images
            )
        newest = checkpoint.open_checkpoints(folder / checkpoint.LATEST, config.keep)
        stack.callback(checkpoint.close, newest)
        best = checkpoint.open_checkpoints(folder / checkpoint.BEST, 1)
        stack.callback(checkpoint.close, best)
        restored = checkpoint.restore(newest, abstract_state(model, tx, mesh, trainable))
        if restored is None:
            state, resume_step = init_state(params, model, tx, mesh, trainable), None
            progress: dict[str, Any] = {
                "position": 0,
                "before": {},
                "scores": {},
                "best": None,
                "tracker_id": None,
            }
        else:
            state, progress = restored
            resume_step = int(state.step)
        checkpoint.forget_after(best, resume_step or 0)
        log = MetricLog(
            folder,
            resume_step=resume_step,
            enabled=main,
            tracker=tracker,
            tracker_id=progress["tracker_id"],
        )
        stack.callback(log.close)
        progress["tracker_id"] = log.tracker_id
        terminal = stack.enter_context(Terminal(config.steps, title, main))
        stop = stack.enter_context(_stop_signals())
        compiled = stack.enter_context(compiles.count())
        if resume_step is not None:
            terminal.message(f"{title}: goes on from the checkpoint of step {resume_step}")

        def held_out(step: int) -> dict[str, float]:
            if not can_score:
                return {}
            return evaluate.score(
                state.params,
                model,
                task,
                task.held_out,
                equivalence,
                k=config.eval_samples,
                key=_key(seed, HELD_OUT, step),
                sampling=sampling,
                max_new_tokens=config.max_new_tokens,
                mesh=mesh,
                rollout=config.rollout,
            ).metrics()

        if resume_step is None:
            progress["before"] = progress["scores"] = held_out(0)
            log.log(0, {f"eval/{k}": v for k, v in progress["before"].items()})

        pending: tuple[int, dict[str, Any]] | None = None

        def settle(extra: dict[str, float] | None = None) -> None:
            """Logs the step before this one: by now its numbers are there and nothing waits."""
            nonlocal pending
            if pending is None:
                return
            step, metrics = pending
            pending = None
            metrics = sharding.to_host(metrics) | (extra or {})
            log.log(step, metrics)
            _stop_if_broken(step, metrics, folder)
            terminal.step(step, metrics)

        for step in range(int(state.step) + 1, config.steps + 1):
            clock = step_log.Clock()
            jax.block_until_ready(state.step)  # the rollout needs it anyway; so the split is true
            clock.lap("update_wait")
            rows = batch_at(task.train, seed, progress["position"], config.prompts_per_step)
            seen = encode_images(state.params, rows, task.images, model, mesh)
            samples = generate(
                state.params,
                [row.prompt_tokens for row in rows],
                [row.id for row in rows],
                config.samples_per_prompt,
                _key(seed, ROLLOUT, step),
                sampling,
                max_new_tokens=config.max_new_tokens,
                stop_tokens=task.stop_tokens,
                cfg=model,
                mesh=mesh,
                config=config.rollout,
                images=seen,
            )
            clock.lap("rollout")
            texts = evaluate.decode(task.tokenizer, samples)
            verdict = judge([r if needs_gold else r.hide_gold() for r in rows], texts, step)
            clock.lap("judge")
            batch = build_batch(
                [row.prompt_tokens for row in rows],
                samples,
                row_multiple=pieces,
                samples_per_segment=config.shared_prompt,
                pack=config.pack,
                images=seen,
            )
            batch = sharding.put_batch(batch, mesh)
            if seen is not None:
                copies = config.samples_per_prompt // config.shared_prompt
                batch = add_images(batch, seen, len(rows), copies, tower_trained, mesh)
            scores = (temperature, model, grpo, constrain)
            if scored_first:
                batch = replace(
                    batch, old_logprobs_BxT=trainer_logprobs(state.params, batch, *scores)
                )
            if reference is not None:
                batch = replace(batch, ref_logprobs_BxT=trainer_logprobs(reference, batch, *scores))
            state, device_metrics = update_step(
                state,
                batch,
                *sharding.put_replicated((verdict.rewards_RxG, verdict.trained_RxG), mesh),
                temperature,
                model,
                grpo,
                tx,
                config.max_new_tokens,
                constrain,
                trainable,
            )
            clock.lap("update_dispatch")
            progress["position"] += len(rows)
            settle()
            host_metrics: dict[str, Any] = step_log.sample_metrics(
                rows, samples, verdict, equivalence, gold_known
            )
            if main:
                files.write_samples(
                    folder, step, step_log.sample_records(step, rows, texts, samples, verdict)
                )
            clock.lap("log")
            host_metrics |= clock.metrics(int(samples.lengths_RxG.sum()))
            host_metrics["train/learning_rate"] = rate((step - 1) * grpo.minibatches)
            host_metrics["compile/count"] = compiled()
            pending = step, device_metrics | host_metrics

            last, stopping = step == config.steps, stop()
            if last or step % config.eval_every == 0:
                progress["scores"] = held_out(step)
                settle({f"eval/{k}": v for k, v in progress["scores"].items()})
                mean = progress["scores"].get("mean")
                if mean is not None and (not progress["best"] or mean > progress["best"]["mean"]):
                    progress["best"] = {"step": step, "mean": mean}
                    checkpoint.save_async(best, state, step, progress)
                terminal.samples(step_log.shown(rows, texts, verdict))
            if last or stopping or step % config.save_every == 0:
                settle()
                log.flush()
                checkpoint.finish(best)
                checkpoint.save_async(newest, state, step, progress)
            if stopping:
                break
        checkpoint.finish(best)
        checkpoint.finish(newest)
        if stop():  # also when it came during the last step: the next arm must not begin
            raise Interrupted(
                f"{title}: stopped by a signal after step {int(state.step)}; everything is saved in "
                f"{folder}. Continue with --resume."
            )
    return Result(progress["before"], progress["scores"], progress["best"], state.params)


def _with_adapters(
    params: decoder.Params, model: ModelConfig, lora: LoraConfig, seed: int, mesh: Mesh
) -> tuple[decoder.Params, ModelConfig]:
    """The policy with fresh adapters where `lora` asks for them; its own go on being trained."""
    if model.lora.rank and lora.rank and model.lora != lora:
        raise UserError(
            f"trainer.lora={lora} differs from the adapters that the policy has: {model.lora}. Leave "
            "trainer.lora out to go on with those, or merge them first: selfevolve convert."
        )
    if model.lora.rank or not lora.rank:
        return params, model
    model = replace(model, lora=lora)
    return add_adapters(params, model, _key(seed, ADAPTERS, 0), mesh), model


def _key(seed: int, purpose: int, step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def _stop_if_broken(step: int, metrics: dict[str, Any], folder: epath.Path) -> None:
    """The update left the state alone where its gradient was not finite; the run ends here."""
    if metrics["train/finite"] == 1:
        return
    names = ("train/loss", "kl/ref", "policy/entropy", "train/grad_norm")
    broken = [n for n in names if n in metrics and not math.isfinite(float(metrics[n]))]
    raise TrainingFailed(
        f"step {step}: {' and '.join(broken) or 'the gradient'} became NaN or infinite. Nothing was "
        f"trained on it, and the last good checkpoint is kept in {folder}. A lower "
        "trainer.optimizer.learning_rate, or float32 as model.dtype, usually helps."
    )


@contextmanager
def _stop_signals():
    """Yields a function that tells whether SIGTERM or SIGINT came. A second Ctrl-C ends at once."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(number, frame):
        if came.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
