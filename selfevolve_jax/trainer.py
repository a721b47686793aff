"""The loop: sample, judge, update, and keep or stop. Host code that reads from top to bottom.

What a resumed run needs is in its checkpoint: parameters, optimiser, step, data position, best
score so far, and one step off the samples of the next step. Random numbers need no state, as every
key is folded from (seed, purpose, step, …). So a run that was killed at any instant and resumed ends
bit for bit where an undisturbed one ends.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import (
    alarm,
    checkpoint,
    compiles,
    early_stop,
    evaluate,
    hosts,
    sharding,
    step_draw,
    step_log,
)
from selfevolve_jax import run_dir as files
from selfevolve_jax.endings import Interrupted, stop_if_broken, stop_signals, words
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import add_images, build_batch
from selfevolve_jax.grpo.update import score as trainer_logprobs
from selfevolve_jax.grpo.update import update_step
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.registry import NEEDS_PAIRS, NEEDS_STATS, make_judge
from selfevolve_jax.keys import ADAPTERS, HELD_OUT, step_key
from selfevolve_jax.metrics import MetricLog, Terminal, read_metrics
from selfevolve_jax.optimizer import decay_mask, learning_rate, make_optimizer
from selfevolve_jax.state import abstract_state, init_state, with_adapters
from selfevolve_jax.tasks.base import Task
from selfevolve_jax.teacher import follow, teacher_params
from selfevolve_jax.trainable import split, trainable_mask, trains_vision
from selfevolve_jax.trainer_config import TrainerConfig, check_batch


@dataclass(frozen=True)
class Result:
    """Held-out figures by name; empty where the held-out rows have no gold. best: the step with the
    best held-out mean, {"step", "mean"}; its state is kept under best/. ended: why a run ended
    otherwise than with its last step's policy, {"why": "early_stop", "alarm" or "steps", "step",
    "restored"}, else None; `params` and `after` are those of the restored step, if there is one."""

    before: dict[str, float]
    after: dict[str, float]
    best: dict[str, float] | None
    params: decoder.Params
    ended: dict[str, Any] | None = None


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
    rollout_mesh: Mesh | None = None,
) -> Result:
    """Trains one policy on one judge's rewards, in the run directory `folder`.

    Goes on from the newest checkpoint in `folder` if there is one. The judge sees no gold unless it
    is the ground-truth judge; what gold there is serves the log and the held-out figures.
    rollout_mesh: where samples are drawn and the policy is evaluated; `mesh` if None.
    Raises Interrupted after SIGTERM (state saved), TrainingFailed on non-finite numbers.
    """
    check_batch(config, mesh)
    can_score = bool(task.held_out) and all(row.gold for row in task.held_out)
    if config.early_stop.patience and not can_score:
        raise UserError(
            f"trainer.early_stop.patience={config.early_stop.patience} needs held-out rows with gold "
            "answers. Give the task some, or use trainer.alarm=rollback, which needs none."
        )
    constrain, main = sharding.constrainer(mesh), jax.process_index() == 0
    if config.pack and any(row.images for row in task.train):
        raise UserError(
            "trainer.pack=True: rows with images are not packed. Leave it out, and share each "
            f"prompt instead: trainer.shared_prompt={config.samples_per_prompt}."
        )
    grpo, sampling = config.grpo, config.sampling
    reference = params if grpo.kl_coef > 0 else None
    params, model = with_adapters(params, model, config.lora, step_key(seed, ADAPTERS, 0), mesh)
    trainable = trainable_mask(model, config.train_vision)
    tower_trained = trains_vision(model, config.train_vision)
    rollout_device = None if rollout_mesh is None else rollout_mesh.local_devices[0]
    rollout_mesh = mesh if rollout_mesh is None else rollout_mesh
    placed = step_draw.placer(model, trainable, mesh, rollout_mesh, config.one_step_off)
    tx = make_optimizer(
        config.optimizer,
        config.steps * grpo.minibatches,
        decay_mask(split(decoder.abstract_params(model), trainable)[0]),
    )
    rate = learning_rate(config.optimizer, config.steps * grpo.minibatches)
    pieces = sharding.batch_ways(mesh) * grpo.accumulate * grpo.minibatches
    teacher_decay = config.teacher_decay if judge_name == "majority" else None
    taught = teacher_decay is not None
    stats, paired = judge_name in NEEDS_STATS, judge_name in NEEDS_PAIRS
    if paired and (config.prompts_per_step % 2 or config.resample):
        raise UserError(
            f"judge {judge_name} sees each problem twice, so trainer.prompts_per_step="
            f"{config.prompts_per_step} must be even and trainer.resample={config.resample} must be 0."
        )
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
        hosts.first(
            "write the policy's files",
            lambda: checkpoint.save_policy_files(
                folder, model, task.tokenizer, task.stop_tokens, task.images
            ),
        )
        newest = checkpoint.open_checkpoints(folder / checkpoint.LATEST, config.keep)
        stack.callback(checkpoint.close, newest)
        best = checkpoint.open_checkpoints(folder / checkpoint.BEST, 1)
        stack.callback(checkpoint.close, best)
        sound = None  # the newest checkpoint before any sign of collapse
        if config.alarm == "rollback":
            sound = checkpoint.open_checkpoints(folder / checkpoint.SOUND, 1)
            stack.callback(checkpoint.close, sound)
        abstract = abstract_state(model, tx, mesh, trainable, taught)
        restored = checkpoint.restore(newest, abstract)
        if restored is None:
            state, resume_step = init_state(params, model, tx, mesh, trainable, taught), None
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
        progress.setdefault("ended", None)
        stored = progress.pop("ahead", None)  # samples of the next step, where it is one step off
        for kept in (best, sound):
            if kept is not None:
                checkpoint.forget_after(kept, -1 if resume_step is None else resume_step)
        log = MetricLog(
            folder,
            resume_step=resume_step,
            enabled=main,
            tracker=tracker,
            tracker_id=progress["tracker_id"],
        )
        stack.callback(log.close)
        progress["tracker_id"] = hosts.first("name the run for its tracker", lambda: log.tracker_id)
        terminal = stack.enter_context(Terminal(config.steps, title, main))
        stop = stack.enter_context(stop_signals())
        # Both rules that end a run are functions of what is logged, so a resume reads them off it.
        lines = []
        if resume_step is not None:
            lines = hosts.first("read the log", lambda: read_metrics(folder / files.METRICS))
        lines = [line for line in lines if line["step"] <= (resume_step or 0)]
        history = [alarm.signals(line) for line in lines if line["step"]]
        means = [line["eval/mean"] for line in lines if "eval/mean" in line]
        fired = next((line["step"] for line in lines if line.get("alarm/fired")), None)
        compiled = stack.enter_context(compiles.count())
        stack.enter_context(hosts.telling())  # before what is above waits for the other processes
        if resume_step is not None:
            terminal.message(f"{title}: goes on from the checkpoint of step {resume_step}")

        def held_out(step: int) -> dict[str, float]:
            if not can_score:
                return {}
            with jax.default_device(rollout_device):
                return evaluate.score(
                    placed(state.params),
                    model,
                    task,
                    task.held_out,
                    equivalence,
                    k=config.eval_samples,
                    key=step_key(seed, HELD_OUT, step),
                    sampling=sampling,
                    max_new_tokens=config.max_new_tokens,
                    mesh=rollout_mesh,
                    rollout=config.rollout,
                ).metrics()

        def evaluated(step: int) -> dict[str, float]:
            """Held-out figures, logged names; the best state is kept. With early stopping the base
            takes part: where training only harms, the base is what is given back."""
            progress["scores"] = held_out(step)
            if "mean" in progress["scores"]:
                mean = progress["scores"]["mean"]
                means.append(mean)
                counts = step > 0 or config.early_stop.patience > 0
                if counts and (not progress["best"] or mean > progress["best"]["mean"]):
                    progress["best"] = {"step": step, "mean": mean}
                    checkpoint.save_async(best, state, step, progress)
            return {f"eval/{k}": v for k, v in progress["scores"].items()}

        if resume_step is None:
            first = evaluated(0)
            progress["before"] = progress["scores"]
            log.log(0, first)

        calm = True  # the last logged step shows no sign of collapse
        pending: tuple[int, dict[str, Any]] | None = None

        def settle(extra: dict[str, float] | None = None) -> None:
            """Logs the step before this one: by now its numbers are there and nothing waits."""
            nonlocal pending, fired, calm
            if pending is None:
                return
            step, metrics = pending
            pending = None
            metrics = sharding.to_host(metrics) | (extra or {})
            if config.alarm != "off":
                history.append(alarm.signals(metrics))
                reading = alarm.read(history, config.prompts_per_step)
                calm = not reading.signs
                if reading.fired and fired is None:
                    fired = step
                    terminal.message(f"{title}: {alarm.warning(step, reading, config.alarm)}")
                metrics |= {
                    "alarm/signs": len(reading.signs),
                    "alarm/fired": float(fired is not None),
                }
            log.log(step, metrics)
            stop_if_broken(step, metrics, folder)
            terminal.step(step, metrics)

        drawing = step_draw.Drawing(
            *(task, model, config, seed, judge, needs_gold, equivalence),
            *(rollout_mesh, rollout_device, taught, tower_trained, paired, stats),
        )

        def sampler_weights() -> step_draw.Weights:
            slow = placed(teacher_params(state, trainable)) if taught else None
            return step_draw.Weights(placed(state.params), slow, int(state.step))

        def finish(why: str, step: int) -> None:
            """Ends the run, with the policy of an earlier step where `why` asks for one."""
            nonlocal state
            source = sound if why == "alarm" else best
            ended = progress["ended"] = {"why": why, "step": step, "restored": None}
            if source is not None and (source is sound or progress["best"]["step"] < step):
                checkpoint.finish(source)
                for leaf in jax.tree.leaves(state):
                    leaf.delete()  # two states need not fit
                found = checkpoint.restore(source, abstract)
                state = (
                    found[0] if found else init_state(params, model, tx, mesh, trainable, taught)
                )
                ended["restored"] = int(state.step)
                progress["scores"] = held_out(int(state.step))
                state = replace(state, step=sharding.put_replicated(np.int32(step), mesh))
            terminal.message(f"{title}: {words(ended)}")

        ahead: step_draw.Drawn | None = None  # the next step's batch, where it is one step off
        for step in range(int(state.step) + 1, config.steps + 1):
            if progress["ended"]:
                break
            clock = step_log.Clock()
            jax.block_until_ready(state.step)  # its weights are needed now; so the split is true
            clock.lap("update_wait")
            before, weights = progress["position"], sampler_weights()
            drawn_before = bool(ahead or stored)  # in another step's time, or another life's
            drawn = ahead or step_draw.draw(drawing, step, before, weights, clock, stored)
            stored, progress["position"] = None, drawn.position
            kept, seen = drawn.kept, drawn.seen
            rows, samples, verdict = kept.rows, kept.samples, kept.verdict
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
            if grpo.scored_first:
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
            if teacher_decay is not None:
                state = follow(state, teacher_decay, trainable)
            clock.lap("update_dispatch")
            ahead = None
            if config.one_step_off and step < config.steps:  # the update goes on meanwhile
                ahead = step_draw.draw(drawing, step + 1, drawn.position, weights, clock)
            del weights
            settle()
            host_metrics: dict[str, Any] = step_log.sample_metrics(kept, equivalence, gold_known)
            if config.resample:
                host_metrics["resample/rounds"] = drawn.rounds
                host_metrics["resample/rows"] = progress["position"] - before
            if main:
                records = step_log.sample_records(step, kept, drawn.dropped)
                files.write_samples(folder, step, step_log.with_pictures(records, rows, folder))
            if config.one_step_off:
                host_metrics["policy/staleness"] = step - 1 - drawn.updates
            clock.lap("log")
            fresh = ([] if drawn_before else [drawn]) + ([ahead] if ahead else [])
            host_metrics |= clock.metrics(sum(int(d.kept.samples.lengths_RxG.sum()) for d in fresh))
            host_metrics["train/learning_rate"] = rate((step - 1) * grpo.minibatches)
            host_metrics["compile/count"] = compiled()
            pending = step, device_metrics | host_metrics

            last, stopping = step == config.steps, stop()
            extra: dict[str, float] = {}
            # The alarm of the step before, whenever its numbers came, so that no save moves the end.
            why = "alarm" if fired is not None and config.alarm in ("stop", "rollback") else None
            if last or why or step % config.eval_every == 0:
                extra = evaluated(step)
                terminal.samples(step_log.shown(kept))
                if early_stop.should_stop(means, config.early_stop):
                    why = why or "early_stop"
            if why:
                extra[f"ended/{why}"] = 1.0
            saving = last or stopping or why or step % config.save_every == 0
            if saving or extra:
                settle(extra)
            if last and not why:  # what the last step itself has to say
                rolled = fired is not None and config.alarm == "rollback"
                kept_best = config.early_stop.patience and progress["best"]["step"] < step
                why = "alarm" if rolled else "steps" if kept_best else None
            if why:
                finish(why, step)
            if saving:
                log.flush()
                if sound is not None and calm and not why and step % config.save_every == 0:
                    checkpoint.save_async(sound, state, step, progress)
                    checkpoint.finish(sound)
                checkpoint.finish(best)
                pending_draw = {"ahead": step_draw.to_store(ahead)} if ahead and not why else {}
                checkpoint.save_async(newest, state, step, progress | pending_draw)
            if stopping or why:
                break
        checkpoint.finish(best)
        checkpoint.finish(newest)
        if stop():  # also when it came during the last step: the next arm must not begin
            raise Interrupted(
                f"{title}: stopped by a signal after step {int(state.step)}; everything is saved in "
                f"{folder}. Continue with --resume."
            )
    return Result(
        progress["before"], progress["scores"], progress["best"], state.params, progress["ended"]
    )
