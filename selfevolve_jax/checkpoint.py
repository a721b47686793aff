"""Checkpoints with everything a run needs to go on, and the policies that others load from them.

A policy folder (a run's arm, or a cached base) holds
    policy/model.json, policy/tokenizer/      what the weights mean, which tokens end a text, and how
                                              images are made ready
    checkpoints/STEP/                         newest states: params, train (optimiser, step), progress
    best/STEP/                                the state with the best held-out score, when scored
    sound/STEP/                               the last without a sign of collapse, where that is kept
Orbax writes each STEP under a temporary name and renames it once whole, so a kill at any instant
leaves the older ones intact.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from models import decoder
from models.config import ModelConfig, config_from_dict
from models.params import shapes
from selfevolve_jax import hosts, remote, run_dir, sharding
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.images import ImageConfig
from selfevolve_jax.state import TrainState

# What Orbax's and TensorStore's errors say of a bucket that could not be written to.
_BUCKET_REFUSALS = (
    *("Forbidden", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED"),
)
LATEST, BEST, SOUND, POLICY = "checkpoints", "best", "sound", "policy"


@dataclass(frozen=True)
class Policy:
    """Weights on devices, with the sizes, the tokenizer and the image settings they belong to."""

    params: decoder.Params
    model: ModelConfig
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    step: int
    images: ImageConfig | None = None  # for models with a vision tower


def open_checkpoints(folder: epath.PathLike, keep: int) -> ocp.training.Checkpointer:
    """A checkpointer that keeps the newest `keep` steps. Half-written ones of a killed run go."""
    with disk_errors(folder):
        return ocp.training.Checkpointer(
            run_dir.absolute(folder),
            # Orbax's protocol and its own policy name an argument differently.
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore
            cleanup_tmp_directories=True,
        )


def save_async(
    checkpoints: ocp.training.Checkpointer, state: TrainState, step: int, progress: dict
) -> None:
    """Starts writing; device arrays are copied before this returns, so the next update may donate
    them. Waits for a save under way, and raises its error here if it had one."""
    with disk_errors(checkpoints.directory):
        checkpoints.wait()
        checkpoints.save_checkpointables_async(
            step,
            {
                "params": state.params,
                "train": _train(state),
                "progress": copy.deepcopy(progress),  # the caller's goes on while this is written
            },
            overwrite=True,
        )


def finish(checkpoints: ocp.training.Checkpointer) -> None:
    """Waits until everything is on disk."""
    with disk_errors(checkpoints.directory):
        checkpoints.wait()


def close(checkpoints: ocp.training.Checkpointer) -> None:
    """Waits as `finish` does, and lets go. Orbax raises here a second time what a save died of."""
    with disk_errors(checkpoints.directory):
        checkpoints.close()


def forget_after(checkpoints: ocp.training.Checkpointer, step: int) -> None:
    """Deletes what a killed life of this run saved past the step it is resumed from: Orbax leaves
    out, in silence, a save that is not the newest."""
    with disk_errors(checkpoints.directory):
        found = [saved.step for saved in checkpoints.checkpoints if saved.step > step]
        # Orbax's deletion waits for all processes, so all must call it for the same steps
        for later in hosts.first("find later checkpoints", lambda: found):
            checkpoints.delete(later)


def restore(
    checkpoints: ocp.training.Checkpointer, abstract: TrainState
) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest finished state and its progress, on the mesh of `abstract`; None if there is none."""
    latest = checkpoints.latest
    step = hosts.first("find the newest checkpoint", lambda: latest and latest.step)
    if step is None:
        return None
    _check_shapes(checkpoints.directory / str(step), "params", abstract.params)
    with _read_errors(checkpoints.directory / str(step)):
        stored = checkpoints.load_checkpointables(
            step,
            {
                "params": abstract.params,
                "train": _train(abstract),
                "progress": None,
            },
        )
    train = stored["train"]
    state = TrainState(train["step"], stored["params"], train["opt_state"], train.get("teacher"))
    return state, stored["progress"]


def _train(state: TrainState) -> dict[str, Any]:
    teacher = {} if state.teacher is None else {"teacher": state.teacher}
    return {"step": state.step, "opt_state": state.opt_state, **teacher}


def save_policy_files(
    folder: epath.PathLike,
    model: ModelConfig,
    tokenizer: Any,
    stop_tokens: tuple[int, ...],
    images: ImageConfig | None = None,
) -> None:
    """policy/model.json and policy/tokenizer/, beside the checkpoints that will hold the weights."""
    policy = epath.Path(folder) / POLICY
    with disk_errors(policy), run_dir.disk_errors(policy):  # tokenizers has errors of its own
        policy.mkdir(parents=True, exist_ok=True)
        with remote.as_local(policy / "tokenizer", "write") as local:
            tokenizer.save_pretrained(local)
    record = {
        "model": model.to_dict(),
        "stop_tokens": stop_tokens,
        "images": images and asdict(images),
    }
    run_dir.write_json_atomic(policy / "model.json", record)


def save_policy(policy: Policy, folder: epath.PathLike) -> None:
    """A policy folder with one checkpoint, of `policy.step`, that holds the weights alone."""
    save_policy_files(folder, policy.model, policy.tokenizer, policy.stop_tokens, policy.images)
    checkpoints = open_checkpoints(epath.Path(folder) / LATEST, 1)
    with disk_errors(folder):
        checkpoints.save_checkpointables(policy.step, {"params": policy.params})
    close(checkpoints)


def find_policy(path: epath.PathLike) -> tuple[epath.Path, epath.Path]:
    """(policy folder, checkpoint step folder) for a path to either. A policy folder means its newest
    checkpoint; give FOLDER/best/STEP, or FOLDER/best, for the best. UserError if there is none."""
    remote.check(path)
    path = run_dir.absolute(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist.")
    for folder in (path, path.parent, path.parent.parent):
        if (folder / POLICY / "model.json").exists():
            break
    else:
        arms = [str(p) for p in (path / "arms").iterdir()] if (path / "arms").exists() else []
        hint = f" Its arms are: {', '.join(sorted(arms))}." if arms else ""
        raise UserError(f"{path} holds no {POLICY}/model.json, so it is no checkpoint.{hint}")
    if path.name.isdigit() and path.parent.name in (LATEST, BEST, SOUND):
        return folder, path
    steps = path if path.name in (LATEST, BEST, SOUND) else folder / LATEST
    done = [int(p.name) for p in steps.iterdir() if p.name.isdigit()] if steps.exists() else []
    if not done:
        raise UserError(f"{steps} holds no finished checkpoint yet.")
    return folder, steps / str(max(done))


def read_model(
    path: epath.PathLike,
) -> tuple[ModelConfig, tuple[int, ...], ImageConfig | None]:
    """A policy's sizes, stop tokens and image settings, without its weights."""
    file = find_policy(path)[0] / POLICY / "model.json"
    with _read_errors(file):
        record = json.loads(file.read_text())
        stored: dict[str, Any] | None = record.get("images")  # older policies have none
        images = None
        if stored is not None:
            stored["mean"], stored["std"] = tuple(stored["mean"]), tuple(stored["std"])
            images = ImageConfig(**stored)
        return config_from_dict(record["model"]), tuple(record["stop_tokens"]), images


def load_policy(
    path: epath.PathLike, mesh: Mesh, param_dtype: Literal["float32", "bfloat16"] | None = None
) -> Policy:
    """Weights alone, without the optimiser, straight to their shards on `mesh`; in `param_dtype`, as
    stored if None."""
    from transformers import AutoTokenizer

    folder, step = find_policy(path)
    model, stop_tokens, images = read_model(step)
    model = replace(model, param_dtype=param_dtype or model.param_dtype)
    specs = decoder.abstract_params(model)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes(specs),
        sharding.tree_shardings(specs, mesh),
    )
    _check_shapes(step, "params", abstract)
    with _read_errors(step):
        params = ocp.load_checkpointables(step, {"params": abstract})["params"]
    place = folder / POLICY / "tokenizer"
    with _read_errors(place), remote.as_local(place, "read") as local:
        tokenizer = AutoTokenizer.from_pretrained(local)
    return Policy(params, model, tokenizer, stop_tokens, int(step.name), images)


def _check_shapes(step: epath.Path, name: str, abstract: Any) -> None:
    """UserError naming the first array whose stored shape is not the expected one."""
    with _read_errors(step):
        stored = ocp.checkpointables_metadata(step).metadata[name]
        if not jax.tree.leaves(stored):
            raise ValueError(f"the description of {name} is missing or damaged")

    def by_path(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_dotted(path): tuple(leaf.shape) for path, leaf in leaves}

    have, want = by_path(stored), by_path(abstract)
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            raise UserError(
                f"checkpoint {step} is of another shape: {name}.{key} is {have.get(key, 'absent')} "
                f"there and {want.get(key, 'absent')} in this model. Use the model options that it "
                "was trained with."
            )


@contextlib.contextmanager
def _read_errors(path: epath.Path) -> Iterator[None]:
    """Damage becomes a UserError; Orbax has a type of its own for each way a folder can be broken."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} cannot be read: {_first_line(error)}. If it is a damaged checkpoint, remove "
            "that folder: the next older one beside it is then used."
        ) from error


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def disk_errors(folder: epath.PathLike) -> Iterator[None]:
    """A save that the disk refused becomes a DiskError. Orbax and TensorStore wrap the system's
    errors in types of their own, so the text is all there is to go by."""
    try:
        yield
    except (DiskError, UserError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        reasons = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG]
        reason = next((os.strerror(r) for r in reasons if os.strerror(r) in said), None)
        refused = remote.is_remote(folder) and any(word in said for word in _BUCKET_REFUSALS)
        if reason is None and not refused and "RESOURCE_EXHAUSTED" not in said:
            raise
        raise DiskError(
            f"saving a checkpoint to {folder} failed: {reason or _first_line(error)}. Older "
            "checkpoints there are intact; free some space and continue with --resume."
        ) from error
