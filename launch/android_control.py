"""`selfevolve android-control`: a GUI agent's step accuracy on AndroidControl."""

from __future__ import annotations

import itertools
from collections import Counter
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
from selfevolve_jax.ui_genie import agent, android_control, evaluators, predictions
from selfevolve_jax.ui_genie.android_control import Setting
from selfevolve_jax.ui_genie.contract import Style, View


@dataclass(frozen=True)
class AndroidControl:
    """Asks a GUI agent for the next action at every step of AndroidControl's episodes, greedily, and
    scores the answers under three named profiles side by side. A row whose answer cannot be parsed is
    wrong and stays in the denominator.

    checkpoint: what agent-sft made; a run's arm, one of its checkpoints/STEP, or its best; a Hugging
    Face folder or hub id. folder: the data set's shards and splits.json, as published; a gs:// address,
    or a copy on disk, which is read faster. split: train, validation or test, or a part of test: IDD,
    app_unseen, task_unseen, category_unseen. setting: high, where the episode's goal is asked, or low,
    the step's own instruction. limit: only the first so many rows. out: a folder that keeps the figures
    and every prediction; the same command goes on where it was interrupted. style: how the prompt is
    written, as in the agent's training. dtype: of matrix products; as stored if not given.
    """

    checkpoint: tyro.conf.Positional[str]
    folder: str = android_control.FOLDER
    split: str = "test"
    setting: Setting = "high"
    limit: int | None = None
    out: str | None = None
    style: Style = "full"
    max_new_tokens: int = 256
    dtype: Literal["float32", "bfloat16"] | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def evaluate(options: AndroidControl) -> dict[str, Any]:
    """Prints the table, and returns the report."""
    if options.limit is not None and options.limit < 1:
        raise UserError(f"limit={options.limit} must be at least 1.")
    if options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={options.max_new_tokens} must be at least 1.")
    if options.out is not None:
        sampling_job.check_folder(options.out, predictions.KIND)
    mesh = sharding.make_mesh(options.mesh)
    shards = android_control.shards(options.folder)
    ids = android_control.split_ids(options.folder, options.split)
    policy, frame_of = agent.load_agent(
        CheckpointConfig(options.checkpoint, options.dtype, param_dtype=None), mesh
    )

    def ask(views: Sequence[View], numbers: Sequence[int]) -> list[str]:
        texts = agent.propose(
            *(policy, views, numbers, 1),
            style=options.style,
            sampling=Sampling(temperature=0.0),
            seed=0,  # the likeliest text needs no random numbers
            mesh=mesh,
            rollout=options.rollout,
            max_new_tokens=options.max_new_tokens,
        )
        return [text for (text,) in texts]

    counts: Counter[str] = Counter()
    rows = (
        row
        for episode in android_control.episodes(shards, ids, counts)
        for row in android_control.rows(episode, options.setting, frame_of, counts)
    )
    request = {
        "told": {"checkpoint": options.checkpoint, "folder": options.folder},
        "split": options.split,
        "episodes": sampling_job.fingerprint(sorted(ids)),
        "setting": options.setting,
        "limit": options.limit,
        "style": options.style,
        "max_new_tokens": options.max_new_tokens,
        "weights": sampling_job.weights_hash(policy.params),
        "dtype": policy.model.dtype,
        "stop_tokens": list(policy.stop_tokens),
        "images": run_dir.jsonable(policy.images),
    }
    report = predictions.evaluate(
        itertools.islice(rows, options.limit), ask, options.out, request, counts
    )
    if jax.process_index() == 0:
        _tell(options, report)
    return report


def _tell(options: AndroidControl, report: dict[str, Any]) -> None:
    data, unread = report["data"], sum(report["failed"].values())
    print(
        f"{options.checkpoint}: AndroidControl {options.split}, {options.setting}: "
        f"{report['rows']} rows of {data['episodes']} episodes"
    )
    print(evaluators.table(report))
    kinds = ", ".join(f"{kind} {n}" for kind, n in report["failed"].items())
    print(f"answers that are no action, counted as wrong: {unread}{f' ({kinds})' if kinds else ''}")
    if lost := data.get("missing_episodes"):
        print(f"episodes of the split that no shard has, and that no figure counts: {lost}")
