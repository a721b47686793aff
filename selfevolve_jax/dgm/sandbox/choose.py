"""Opens the sandbox that this machine can hold, or refuses. There is no running without one."""

from __future__ import annotations

from typing import Literal

from selfevolve_jax.dgm.sandbox.bubblewrap import open_bubblewrap
from selfevolve_jax.dgm.sandbox.container import ENGINES, open_container
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits, SandboxError
from selfevolve_jax.errors import UserError

Kind = Literal["auto", "bubblewrap", "docker", "podman"]


def open_box(kind: Kind = "auto", workers: int = 2) -> Box:
    """A sandbox in which a program has really been started. auto: bubblewrap, else an engine that
    answers. workers: jobs at once, at most. Raises UserError, with the command that helps, where none
    can be held."""
    if workers < 1:
        raise UserError(f"workers={workers}: a sandbox needs at least one; set it to 1 or more")
    if kind != "auto":
        return _open(kind, workers)
    refusals: list[str] = []
    for each in ("bubblewrap", *ENGINES):
        try:
            return _open(each, workers)
        except UserError as e:
            refusals.append(f"{each}: {e}")
    raise UserError(
        "no sandbox can be held here, and nothing untrusted runs without:\n" + "\n".join(refusals)
    )


def _open(kind: Kind, workers: int) -> Box:
    box = open_bubblewrap(workers) if kind == "bubblewrap" else open_container(kind, workers)
    try:
        said = box.run(Job(("/bin/sh", "-c", "echo started"), limits=Limits(wall_s=30)))
    except SandboxError as e:
        box.close()
        raise UserError(f"{kind} is here but cannot start a sandbox: {e}; {_fix(kind)}") from e
    if said.exit_code != 0 or said.stdout != b"started\n":
        box.close()
        raise UserError(f"{kind} is here but a first program in it ended with {said}; {_fix(kind)}")
    return box


def _fix(kind: Kind) -> str:
    if kind == "bubblewrap":
        return (
            "if user namespaces are off here, as root: sysctl -w user.max_user_namespaces=10000 "
            "kernel.apparmor_restrict_unprivileged_userns=0; or start it as root"
        )
    return f"see what `{kind} run --rm IMAGE true` says"
