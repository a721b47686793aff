"""`selfevolve agent-sft`: a GUI agent learns from demonstrations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import tyro
from etils import epath
from jax.sharding import Mesh

from launch.experiment import say_failed_saves_once
from selfevolve_jax import run_dir, sampling_job, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.ui_genie import agent, agent_sft, android_control
from selfevolve_jax.ui_genie.agent_sft import FrameOf, Shown
from selfevolve_jax.ui_genie.android_control import Setting
from selfevolve_jax.ui_genie.contract import Style
from selfevolve_jax.ui_genie.training import check_batch, plan, train_policy

KIND = "agent SFT"
# What a resume may change: where things are, and how often they are saved.
MAY_CHANGE = frozenset(("told", "save_every"))
_SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    "high": ("high",),
    "low": ("low",),
    "both": ("high", "low"),
}


@dataclass(frozen=True, kw_only=True)
class AgentSFT:
    """Trains a vision-language policy to write the demonstrated action at every step, by default at
    UI-Genie's settings: one epoch, AdamW at 1e-5, cosine after a warm-up of 0.05 of the batches, 160
    steps in a batch, the vision tower frozen, screenshots of 602112 pixels at most.

    checkpoint: where training starts: a run's arm, one of its checkpoints/STEP, or its best; a Hugging
    Face folder or hub id. data: files in UI-Genie-Agent-16k's format (JSON lines; docs/ui_genie.md says
    what is read and what is left out). out: becomes a policy folder. resume: go on with the training
    in out. android_control: a folder with AndroidControl's shards, whose train split is learnt from
    too; its screenshots are copied to out. setting: what is asked in its rows: the episode's goal
    (high), the step's instruction (low), or each in a row of its own. style: how the prompt is written.

    warmup: as a share of the batches. accumulate: pieces that a batch's gradient is summed from, which
    changes memory, not numbers. save_every: batches between two checkpoints. dtype: of matrix products,
    float32 if not given, as the weights that are trained are. remat: what is computed again in the
    backward pass, to save memory.
    """

    checkpoint: tyro.conf.Positional[str]
    data: tyro.conf.Positional[tuple[str, ...]] = ()
    out: str
    resume: bool = False
    android_control: str | None = None
    setting: Literal["high", "low", "both"] = "both"
    style: Style = "full"
    learning_rate: float = 1e-5
    epochs: float = 1.0
    batch: int = 160
    warmup: float = 0.05
    accumulate: int = 1
    train_vision: bool = False
    save_every: int = 50
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None
    remat: Literal["none", "dots", "full"] | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup={self.warmup} must be in [0, 1).")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if not self.data and self.android_control is None:
            raise UserError(
                "there is nothing to learn from. Give files in UI-Genie-Agent-16k's format, or "
                "--android-control FOLDER."
            )


def train(options: AgentSFT) -> Policy:
    """Prints what is learnt from and the losses, and returns the policy. What is cheap to check goes
    before the weights are read."""
    mesh = sharding.make_mesh(options.mesh)
    check_batch("", options.batch, options.accumulate, mesh)
    out = run_dir.absolute(options.out)
    if options.resume and not run_dir.is_new(out):
        run_dir.read_config(out)
    else:
        _in_our_words(lambda: run_dir.check(out, {}, False))
    for path in options.data:
        if not epath.Path(path).exists():
            raise UserError(f"{path} does not exist. Fix: check the path.")
    if options.android_control is not None:
        android_control.shards(options.android_control)
        android_control.split_ids(options.android_control, "train")
    policy, frame_of = agent.load_agent(
        CheckpointConfig(options.checkpoint, options.dtype, remat=options.remat), mesh
    )
    say_failed_saves_once()
    config = _config(options, policy)
    _in_our_words(lambda: run_dir.check(out, config, options.resume, MAY_CHANGE))
    main = jax.process_index() == 0
    if main:
        run_dir.create(out, config, options.resume, MAY_CHANGE)
    steps = _data(options, frame_of, out)
    return _train(options, policy, steps, out, mesh)


def _train(
    options: AgentSFT, policy: Policy, shown: list[Shown], out: epath.Path, mesh: Mesh
) -> Policy:
    learnt, main = agent_sft.examples(shown), jax.process_index() == 0
    steps = agent.sft_steps(len(learnt), options.batch, options.epochs)
    optimizer = OptimizerConfig(
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_steps=math.ceil(options.warmup * steps),
    )

    def batches(done: int):
        if main:
            print(f"{len(learnt)} steps to learn from, {steps} batches of {options.batch}")
            if done:
                print(f"going on after batch {done}", flush=True)
        return agent.sft_batches(
            policy,
            learnt,
            options.style,
            size=options.batch,
            steps=steps,
            seed=options.seed,
            pieces=sharding.batch_ways(mesh) * options.accumulate,
            start=done,
        )

    def tell(step: int, loss: float) -> None:
        if main:
            print(f"batch {step} of {steps}: loss {loss:.4f}", flush=True)

    trained = train_policy(
        policy,
        out,
        plan(policy.model, steps, optimizer, options.train_vision),
        batches,
        mesh,
        options.accumulate,
        options.save_every,
        tell,
    )
    if main:
        print(f"trained: {out}")
    return trained


def _data(options: AgentSFT, frame_of: FrameOf, out: epath.Path) -> list[Shown]:
    """All that is learnt from, always in the same order."""
    steps: list[Shown] = []
    told: dict[str, dict[str, int]] = {}
    for path in options.data:
        counts: Counter[str] = Counter()
        steps += agent_sft.published(path, frame_of, counts)
        told[path] = dict(counts)
    if options.android_control is not None:
        counts = Counter()
        steps += agent_sft.demonstrated(
            options.android_control,
            _SETTINGS[options.setting],
            frame_of,
            out / "screenshots",
            counts,
            elements=options.style == "short",
        )
        told[options.android_control] = dict(counts)
    sampling_job.agreed([True])  # the screenshots are there before another process reads one
    if jax.process_index() == 0:
        for source, counted in told.items():
            print(f"{source}: " + ", ".join(f"{name} {n}" for name, n in counted.items()))
    if not steps:
        raise UserError("no row can be learnt from; what was left out of each source stands above.")
    agent_sft.check_same(out, steps, told)
    return steps


def _config(options: AgentSFT, policy: Policy) -> dict[str, Any]:
    """For config.json: whatever decides the result, and in "told" where things are."""
    config = run_dir.jsonable(options)
    del config["resume"]
    told = {name: config.pop(name) for name in ("checkpoint", "data", "android_control", "out")}
    return {
        "kind": KIND,
        "told": told,
        **config,
        "weights": sampling_job.weights_hash(policy.params),
        "images": run_dir.jsonable(policy.images),
    }


def _in_our_words(check) -> None:
    """A run goes by --run-dir, a training by --out."""
    try:
        check()
    except UserError as error:
        raise UserError(str(error).replace("another --run-dir", "another --out")) from None
