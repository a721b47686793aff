"""`selfevolve android-world`: a GUI agent's success on AndroidWorld's tasks."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import tyro

from selfevolve_jax import run_dir, sampling_job, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.ui_genie import agent, android_episodes
from selfevolve_jax.ui_genie.android_world import (
    WorkerLost,
    android_world_fleet,
    open_android_world,
    worker_command,
)
from selfevolve_jax.ui_genie.contract import Style
from selfevolve_jax.ui_genie.environment import State


@dataclass(frozen=True)
class AndroidWorld:
    """Lets a GUI agent do AndroidWorld's tasks on Android emulators, greedily, and tells how often the
    device calls it a success, task by task, with Wilson's 95% intervals.

    EXERCISED ONLY AGAINST A RECORDED DEVICE AND A STAND-IN FOR THE PACKAGE: nobody has run this with
    android_world and an emulator yet. Expect to mend something, and report it.

    It needs google-research/android_world in a Python of its own, adb, and emulators that run.

    checkpoint: what agent-sft made; a run's arm, one of its checkpoints/STEP, or its best; a Hugging
    Face folder or hub id. python: the interpreter that has android_world. out: a folder that keeps
    every episode and the figures; the same command goes on where it was interrupted, and `selfevolve
    report OUT/episodes` shows them. tasks: by AndroidWorld's names; all if none is given. episodes: of
    each task, with seeds from `seed` on, which its parameters are drawn by. max_steps: of an episode,
    after which it is cut off and no success. emulators: CONSOLE:GRPC, the ports of each. adb: the
    program. style: how the prompt is written, as in the agent's training. dtype: of matrix products; as
    stored if not given.
    """

    checkpoint: tyro.conf.Positional[str]
    python: str
    out: str
    tasks: tuple[str, ...] = ()
    episodes: int = 1
    seed: int = 0
    max_steps: int = 30
    emulators: tuple[str, ...] = ("5554:8554",)
    adb: str = "adb"
    style: Style = "full"
    max_new_tokens: int = 256
    dtype: Literal["float32", "bfloat16"] | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("episodes", "max_steps", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"tasks={' '.join(self.tasks)}: name each once.")
        if not self.emulators or len(set(self.emulators)) < len(self.emulators):
            raise UserError(f"emulators={' '.join(self.emulators)}: name some, each once.")
        for ports in self.emulators:
            if not re.fullmatch(r"\d{1,5}:\d{1,5}", ports):
                raise UserError(
                    f"emulators={ports}: give CONSOLE:GRPC, such as 5554:8554 for the first emulator "
                    "if it was started with -grpc 8554."
                )


def evaluate(options: AndroidWorld) -> dict[str, Any]:
    """Prints the table, and returns the report. What is cheap to check goes before the weights are
    read."""
    if jax.process_count() > 1:
        raise UserError(
            "android-world drives emulators from one process, and this is one of "
            f"{jax.process_count()}. Fix: start it on one host, whose devices its mesh may use all."
        )
    out = run_dir.absolute(options.out)
    sampling_job.check_folder(out, android_episodes.KIND)
    mesh = sharding.make_mesh(options.mesh)
    over = (out / run_dir.SUMMARY).exists()
    commands = [] if over else _commands(options)
    tasks = () if over else _tasks(options, commands[0])
    policy, frame_of = agent.load_agent(
        CheckpointConfig(options.checkpoint, options.dtype, param_dtype=None), mesh
    )
    request = {
        "kind": android_episodes.KIND,
        "told": {"checkpoint": options.checkpoint, "python": options.python},
        "tasks": list(options.tasks),
        "episodes": options.episodes,
        "seed": options.seed,
        "max_steps": options.max_steps,
        "style": options.style,
        "max_new_tokens": options.max_new_tokens,
        "weights": sampling_job.weights_hash(policy.params),
        "dtype": policy.model.dtype,
        "stop_tokens": list(policy.stop_tokens),
        "images": run_dir.jsonable(policy.images),
    }
    sampling_job.open_folder(out, android_episodes.KIND, request)
    if over:
        report = run_dir.read_summary(out)
        _tell(options, report)
        return report

    def propose(views, ids, n):
        return agent.propose(
            *(policy, views, ids, n),
            style=options.style,
            sampling=Sampling(temperature=0.0),
            seed=0,  # the likeliest text needs no random numbers
            mesh=mesh,
            rollout=options.rollout,
            max_new_tokens=options.max_new_tokens,
        )

    seeds = range(options.seed, options.seed + options.episodes)
    starts = [State(task, seed) for task in tasks for seed in seeds]
    with android_world_fleet(commands, frame_of) as fleet:
        found, broken = android_episodes.play(
            *(starts, fleet, len(commands), propose, options.max_steps, out),
            lambda told: print(told, flush=True),
        )
    if broken:
        if found:
            _tell(options, android_episodes.report(found))
        some = "; ".join(
            f"{one.task}, seed {one.seed}: {why}" for one, why in [*broken.items()][:3]
        )
        raise UserError(
            f"{len(broken)} of {len(starts)} episodes could not be played, and no figure counts them: "
            f"{some}. Fix: see to the emulator, or leave tasks out by --tasks with another --out; the "
            "same command tries these again."
        )
    report = android_episodes.report(found)
    run_dir.write_summary(out, report)
    _tell(options, report)
    return report


def _commands(options: AndroidWorld) -> list[tuple[str, ...]]:
    """A worker's command line for each emulator. UserError for a missing adb."""
    if shutil.which(adb := os.path.expanduser(options.adb)) is None:
        raise UserError(
            f"adb={options.adb!r} is no program that can be run. Fix: install Android's platform-tools "
            "(apt-get install adb), or give --adb PATH."
        )
    ports = [tuple(map(int, each.split(":"))) for each in options.emulators]
    return [worker_command(options.python, console, grpc, adb) for console, grpc in ports]


def _tasks(options: AndroidWorld, command: Sequence[str]) -> tuple[str, ...]:
    """The tasks that are asked for, once the first emulator has said which there are. UserError where
    the package or the emulator is missing."""

    async def known() -> tuple[str, ...]:
        world = await open_android_world(command, lambda frame: frame)
        try:
            return world.tasks
        finally:
            await world.close()

    try:
        there = asyncio.run(known())
    except WorkerLost as error:
        raise UserError(
            f"{error}. Fix: check that `adb devices` lists the emulator of ports "
            f"{options.emulators[0]}; start it with: emulator -avd NAME -no-snapshot -grpc "
            f"{options.emulators[0].partition(':')[2]}"
        ) from error
    unknown = [task for task in options.tasks if task not in there]
    if unknown or not there:
        raise UserError(
            f"AndroidWorld has no task {', '.join(unknown) or 'at all'}. Fix: some of "
            f"{', '.join(there)}."
        )
    return options.tasks or there


def _tell(options: AndroidWorld, report: dict[str, Any]) -> None:
    print(f"{options.checkpoint}: AndroidWorld, {report['episodes']} episodes")
    print(android_episodes.table(report))
    print("ended: " + ", ".join(f"{why} {n}" for why, n in report["ended"].items()))
    unread = ", ".join(f"{kind} {n}" for kind, n in report["failed"].items())
    print(f"answers that are no action, which end an episode: {unread or 'none'}")
