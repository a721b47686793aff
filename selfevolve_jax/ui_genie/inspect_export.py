"""Trajectories as a log of Inspect (inspect-ai, extra `inspect`), to be looked at with `inspect view`
and read by its tools.

One sample a trajectory. Its messages are the episode as it went: the goal and the first screen from
the user, then for each step what the agent wrote with the tool call that it parsed to, and the next
screen as the tool's result. That is not the prompt that the agent was given at each step, which
contract.py makes anew from the goal, the history and the latest screens.

inspect_ai is imported inside the functions: it is an extra.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import actions, trajectory
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample  # pyright: ignore[reportMissingImports]

FIX = "uv sync --extra inspect"
ENVIRONMENT, REWARD_MODEL = "environment", "reward_model"  # the two scores, and their scorers


def export(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    task: str = "ui-genie",
) -> epath.Path:
    """Writes the trajectories of these folders as one Inspect log and returns its path.

    folders: as trajectory.write leaves them. out: a path that ends in .eval (Inspect's zip) or .json;
      it is written whole or not at all. task: the log's name for what was done.

    A sample's scores are "environment" (C or I: the environment's own verdict) and "reward_model" (its
    outcome score, from 0 to 1), each only where the trajectory has one; the log's results are their
    means. Step scores, labels and failures are metadata of the messages, provenance that of the
    sample. Pictures are embedded, and the log is put together in memory. Half surrogates, which UTF-8
    cannot hold, are written as U+FFFD, and so are control characters in ids.

    Raises UserError where inspect-ai is missing, another ending than those two is asked for, an id is
    in two folders, a folder or screenshot cannot be read, or there is no trajectory; DiskError.
    """
    path = epath.Path(out)
    if importlib.util.find_spec("inspect_ai") is None:
        raise UserError(f"export to Inspect: inspect-ai is not installed. Fix: {FIX}")
    if path.suffix not in (".eval", ".json"):
        raise UserError(
            f"export to Inspect: {out} ends in neither .eval nor .json. "
            "Fix: name a log that ends in .eval."
        )
    kept = [(epath.Path(folder), one) for folder in folders for one in trajectory.read(folder)]
    _refuse(kept, folders)

    from inspect_ai.log import write_eval_log  # pyright: ignore[reportMissingImports]

    log = make_log(kept, task)
    temporary = epath.Path(tempfile.gettempdir())
    with run_dir.disk_errors(temporary), tempfile.TemporaryDirectory() as made:
        # Inspect's writer leaves half a file where it is interrupted, so it writes elsewhere.
        beside = Path(made) / f"log{path.suffix}"
        write_eval_log(log, str(beside))
        data = beside.read_bytes()
    with run_dir.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_bytes_atomic(path, data)
    return path


def make_log(kept: Sequence[tuple[epath.Path, Trajectory]], task: str) -> EvalLog:
    """The log, in memory. kept: (folder, trajectory); a folder is where the screenshots are."""
    from inspect_ai.log import (  # pyright: ignore[reportMissingImports]
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalPlan,
        EvalPlanStep,
        EvalResults,
        EvalSpec,
        EvalStats,
    )

    now = datetime.now(UTC).isoformat(timespec="seconds")
    name = _model(kept)
    samples = [_sample(folder, one, name) for folder, one in kept]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=now,
            task=_utf8(task),
            dataset=EvalDataset(
                name=", ".join(dict.fromkeys(_utf8(one.task) for _, one in kept)),
                location=", ".join(dict.fromkeys(_utf8(os.fspath(folder)) for folder, _ in kept)),
                samples=len(samples),
                sample_ids=[sample.id for sample in samples],
            ),
            model=name,
            config=EvalConfig(),
            packages={k: v for k, v in run_dir.versions().items() if v and k == "selfevolve-jax"},
        ),
        plan=EvalPlan(steps=[EvalPlanStep(solver="ui-genie")]),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=_results([one for _, one in kept]),
        ),
        stats=EvalStats(started_at=now, completed_at=now),
        samples=samples,
    )


def _sample(folder: epath.Path, one: Trajectory, name: str) -> EvalSample:
    from inspect_ai.log import EvalSample  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import ChatMessageUser, ContentText, ModelOutput  # pyright: ignore[reportMissingImports]
    from inspect_ai.scorer import CORRECT, INCORRECT, Score  # pyright: ignore[reportMissingImports]

    screens = [_image(folder, one, shown) for shown in trajectory.names(one)]
    start = ChatMessageUser(
        id=f"{_id(one)}/goal", content=[ContentText(text=_utf8(one.goal)), screens[0]]
    )
    messages: list[Any] = [start]
    for i, step in enumerate(one.steps):
        messages += _turn(_id(one), i, step, screens[i + 1], name)
    scores = {}
    if one.success is not None:
        scores[ENVIRONMENT] = Score(
            value=CORRECT if one.success else INCORRECT,
            explanation="The environment's own verdict; it ended the episode."
            if one.done
            else "The environment's own verdict; it had not ended the episode.",
        )
    if one.outcome_score is not None:
        scores[REWARD_MODEL] = Score(
            value=float(one.outcome_score),
            explanation="The reward model's probability that the task is done on the last screen.",
        )
    last = one.steps[-1] if one.steps else None
    return EvalSample(
        id=_id(one),
        epoch=1,
        input=[start],
        target="",
        messages=messages,
        output=ModelOutput.from_content(name, _utf8(last.text)) if last else ModelOutput(),
        scores=scores or None,
        metadata=_plain(
            {
                **{"task": one.task, "seed": one.seed, "done": one.done},
                **{"frame": [one.frame.width, one.frame.height]},
                "steps": [_told(step) for step in one.steps],
                "failures": Counter(step.failure for step in one.steps if step.failure),
                "source": one.source,
            }
        ),
    )


def _turn(id: str, i: int, step: Step, screen: Any, name: str) -> list[Any]:
    """What the agent wrote at step i, and the screen that came of it."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser  # pyright: ignore[reportMissingImports]
    from inspect_ai.tool import ToolCall  # pyright: ignore[reportMissingImports]

    # The viewer shows it beside the message; older releases of Inspect leave it out, and have it in
    # the sample's metadata.
    told = _plain(_told(step))
    call = f"{id}/{i}"
    wrote = ChatMessageAssistant(
        id=f"{call}/agent", content=_utf8(step.text), model=name, source="generate", metadata=told
    )
    if step.action is None:
        # No tool was called, so none can answer.
        return [wrote, ChatMessageUser(id=f"{call}/screen", content=[screen])]
    arguments = _plain(actions.as_record(step.action))
    wrote.tool_calls = [ToolCall(id=call, function=actions.TOOL, arguments=arguments)]
    answer = ChatMessageTool(
        id=f"{call}/screen", content=[screen], tool_call_id=call, function=actions.TOOL
    )
    return [wrote, answer]


def _told(step: Step) -> dict[str, Any]:
    return {"score": step.score, "label": step.label, "failure": step.failure}


def _results(ones: Sequence[Trajectory]) -> list[Any]:
    """The mean of each score over the trajectories that have it."""
    from inspect_ai.log import EvalMetric, EvalScore  # pyright: ignore[reportMissingImports]

    verdicts = [float(one.success) for one in ones if one.success is not None]
    judged = [one.outcome_score for one in ones if one.outcome_score is not None]
    found = []
    for name, metric, values in (
        (ENVIRONMENT, "accuracy", verdicts),
        (REWARD_MODEL, "mean", judged),
    ):
        if values:
            mean = EvalMetric(name=metric, value=float(np.mean(values)))
            counts = {"scored": len(values), "not_scored": len(ones) - len(values)}
            found.append(EvalScore(name=name, scorer=name, metrics={metric: mean}, metadata=counts))
    return found


def _image(folder: epath.Path, one: Trajectory, shown: str) -> Any:
    from inspect_ai.model import ContentImage  # pyright: ignore[reportMissingImports]

    path = folder / trajectory.SCREENSHOTS / shown
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"trajectory {one.id!r}: screenshot {path} cannot be read: {error}. "
            "Fix: restore the folder of screenshots, or make the trajectories anew."
        ) from error
    return ContentImage(image=f"data:image/png;base64,{base64.b64encode(data).decode()}")


def _model(kept: Sequence[tuple[epath.Path, Trajectory]]) -> str:
    """What the log calls the agent: its policy where all have the same one, in Inspect's
    provider/name."""
    named = {one.source.get("policy") for _, one in kept}
    policy = named.pop() if len(named) == 1 else None
    return f"selfevolve/{_utf8(policy) if isinstance(policy, str) else 'agent'}"


def _refuse(
    kept: Sequence[tuple[epath.Path, Trajectory]], folders: Sequence[str | os.PathLike[str]]
) -> None:
    if not kept:
        where = ", ".join(os.fspath(folder) for folder in folders) or "no folder"
        raise UserError(
            f"export to Inspect: there is no trajectory in {where}. Fix: pass a folder with some."
        )
    seen: dict[str, epath.Path] = {}
    for folder, one in kept:
        id = _id(one)
        if id in seen:
            raise UserError(
                f"export to Inspect: trajectory {id!r} is in {seen[id]} and in {folder}, and a "
                "log has each id once. Fix: export the folders one by one."
            )
        seen[id] = folder


def _id(one: Trajectory) -> str:
    """A sample's id, which names a file in the log: without characters that no file's name can hold."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", _utf8(one.id))


def _plain(value: Any) -> Any:
    """As JSON values whose texts UTF-8 can hold."""
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, dict):
        return {_utf8(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return (
        value
        if value is None or isinstance(value, (int, float))
        else _plain(run_dir.jsonable(value))
    )


def _utf8(text: str) -> str:
    return re.sub(r"[\ud800-\udfff]", "�", text)
