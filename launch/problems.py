"""Which problems a checkpoint is asked: its own run's, a suite's, or a data set's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import tyro
from etils import epath
from jax.sharding import Mesh

from launch.messages import complain
from selfevolve_jax import checkpoint, hosts, run_dir, sharding, suites
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.hosts import HostsConfig
from selfevolve_jax.mm_upt.drawn import Drawn
from selfevolve_jax.mm_upt.run import load_task as load_pictures
from selfevolve_jax.pretrained import source
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt.run import load_task
from selfevolve_jax.tasks import dataset
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.base import Row, Task
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig
from selfevolve_jax.tasks.gym import GymConfig
from selfevolve_jax.tasks.pictures import PicturesConfig
from selfevolve_jax.tasks.sums import SumsConfig


@dataclass(frozen=True)
class Problems:
    """What `evaluate` and `label` have in common: see their own texts."""

    checkpoint: tyro.conf.Positional[str]
    suite: str | None = None
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    question_column: str = "question"
    answer_column: str | None = "answer"
    image_column: str | None = None
    chat: bool = False
    suffix: str = ""
    pattern: str = "boxed"
    equivalence: Literal["exact", "math"] = "math"
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)


# What a suite sets and an option can change.
COLUMNS = (
    *("question_column", "answer_column", "image_column", "chat", "suffix"),
    *("pattern", "equivalence"),
)


@dataclass(frozen=True)
class Asked:
    """name: the checkpoint's folder, or what was typed. told: the same for config.json. config: what
    the task was loaded from."""

    name: str
    policy: Policy
    task: Task
    rows: Sequence[Row]
    max_new_tokens: int
    mesh: Mesh
    told: dict[str, Any]
    config: Any


def of_suite(options: Problems) -> dict[str, Any]:
    """What the named suite sets, to be the defaults of these options; nothing for another suite."""
    preset = None if options.suite is None else suites.suite(options.suite)
    return {} if preset is None else {name: getattr(preset, name) for name in COLUMNS}


def load(options: Problems, own: Literal["train", "held_out"]) -> Asked:
    """Checks the options, and loads policy and problems. own: which rows of the checkpoint's own run
    are asked where no suite is named. What is cheap to check goes first."""
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit={options.limit} must be at least 1.")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={options.max_new_tokens} must be at least 1.")
    if options.seed < 0:
        raise UserError(f"seed={options.seed} must not be negative.")
    check_sampling(options.sampling)
    hosts.connect(options.hosts, complain)
    mesh = sharding.make_mesh(options.mesh)
    data = None if options.suite is None else _data(options, options.suite)
    name, limit, folder = options.checkpoint, options.max_new_tokens, epath.Path()
    if data is None or source.is_policy(name):
        folder, name = checkpoint.find_policy(name)
    stored: dict[str, Any] = {}
    if data is None:
        if not (folder / run_dir.CONFIG).exists():
            raise UserError(f"{folder} is not a run, so it has no rows of its own. Give a --suite.")
        stored = run_dir.read_config(folder)["config"]
        if not {"task", "seed", "trainer"} <= stored.keys():
            raise UserError(f"the run of {folder} names no task. Give a --suite.")
        limit = limit or stored["trainer"]["max_new_tokens"]
    else:
        suites.check_there(data, str(options.suite))
    policy = source.load_policy(name, mesh, dtype=options.dtype)
    config: Any = task_config(stored["task"]) if data is None else data
    if data is None:
        if isinstance(config, Drawn):
            task = load_pictures(config, policy, stored["seed"])
        else:
            task = load_task(config, policy, stored["seed"])
        rows = task.held_out if own == "held_out" else task.train
    else:
        try:
            task = dataset.load_task(
                data,
                policy.tokenizer,
                policy.stop_tokens,
                vision=policy.model.vision,
                images=policy.images,
                form=suites.form(options.suite),
            )
        except UserError as error:  # tasks speak of a recipe's options
            raise UserError(_retold(str(error), options)) from error
        rows = task.train
    told = {"checkpoint": str(name), "suite": options.suite}
    rows = list(rows[: options.limit])
    return Asked(str(name), policy, task, rows, limit or 1024, mesh, told, config)


def _data(options: Problems, name: str) -> DataConfig:
    base = suites.suite(name) or DataConfig(path=name, held_out_fraction=0.0)
    return replace(base, **{column: getattr(options, column) for column in COLUMNS})


def _retold(message: str, options: Problems) -> str:
    known = {f.name for f in fields(options)}

    def one(found: re.Match[str]) -> str:
        option = found[2].replace("-", "_")
        return f"--{found[1] or ''}{found[2]}" if option in known else found[0]

    return re.sub(r"--task\.(no-)?([\w-]+)", one, message)


def task_config(
    stored: dict,
) -> ArithmeticConfig | DataConfig | GymConfig | Drawn | SumsConfig:
    """A task's config as it was read back from config.json."""
    if "kinds" in stored:
        return PicturesConfig(**{**stored, "kinds": tuple(stored["kinds"])})
    if "numbers" in stored:
        return ArithmeticConfig(**{**stored, "numbers": tuple(stored["numbers"])})
    if "operation" in stored:
        return SumsConfig(**stored)
    if "path" in stored:
        return DataConfig(**stored)
    return GymConfig(**stored) if "name" in stored else EasyVQAConfig(**stored)
