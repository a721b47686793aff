"""Other projects to measure against: an environment of its own for each, and a process that answers.

Their scripts are in tests/benchmarks of a checkout, since they import what is no dependency of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import selfevolve_jax
from selfevolve_jax.bench.measure import Failed
from selfevolve_jax.cache import cache_folder

SCRIPTS = Path(str(selfevolve_jax.__file__)).parents[1] / "tests" / "benchmarks"


@dataclass(frozen=True)
class Peer:
    """environment: its folder's name. script: in `SCRIPTS`. packages: what is asked of the registry,
    after torch where `torch`. compiles: for the shapes that it is given, so that only the same work
    warms it up."""

    environment: str
    script: str
    packages: tuple[str, ...]
    torch: bool = False
    compiles: bool = False


TORCH = Peer(
    "torch", "torch_worker.py", ("transformers", "trl", "datasets", "accelerate"), torch=True
)
TUNIX = Peer("tunix", "tunix_worker.py", ("google-tunix",), compiles=True)


def environment(peer: Peer, say: Callable[[str], None]) -> Path:
    """The Python of the peer's environment under the cache folder, made on first use. Failed with the
    installer's own last words."""
    folder = cache_folder() / "bench" / peer.environment
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return python
    if not shutil.which("uv"):
        raise Failed("uv, which makes its environment, is not installed")
    say(f"installing {', '.join(peer.packages)} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _run(["uv", "venv", "--quiet", "--python", sys.executable, str(folder)])
    install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
    if peer.torch:
        _install_torch(install)
    _run([*install, *peer.packages])
    ready.touch()
    return python


def _install_torch(install: list[str]) -> None:
    """From PyTorch's own index of CPU builds; else a CPU wheel where PIP_FIND_LINKS points; else the
    registry's, which brings CUDA along and runs on the CPU all the same."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    wheels = [w for p in places for w in sorted(Path(p).glob(f"torch-*+cpu-{tag}-*.whl"))]
    ways = [["--torch-backend", "cpu", "torch"], *([str(w)] for w in wheels[-1:]), ["torch"]]
    for way in ways[:-1]:
        try:
            return _run([*install, *way])
        except Failed:
            continue
    _run([*install, *ways[-1]])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise Failed(f"{' '.join(command[:3])} failed: {said[-1] if said else 'no message'}")


class Worker:
    """A peer's process. Every failure of it is a Failed with the reason: an error that it reports, its
    death, an answer that does not come in time."""

    def __init__(self, command: Sequence[str], log: Path, threads: int):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_"))}
        env |= {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        env["PYTHONUNBUFFERED"] = "1"
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # Answers have a pipe of their own, since libraries print what they like.
        answers, theirs = os.pipe()
        with log.open("w") as said:
            self._process = subprocess.Popen(
                [*command, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                env=env,
                pass_fds=(theirs,),
            )
        os.close(theirs)
        self._answers = os.fdopen(answers)

    def ask(self, do: str, timeout_s: float = 900.0, **arguments: Any) -> dict[str, Any]:
        """The answer to one question."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise Failed(self._death()) from None
        if not select.select([self._answers], [], [], timeout_s)[0]:
            self.close()
            raise Failed(f"{do!r} took more than {timeout_s:.0f} s")
        line = self._answers.readline()
        if not line:
            raise Failed(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _death(self) -> str:
        code = self._process.wait()
        said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"its process ended with {code}: {said[-1] if said else 'no message'}"

    def close(self) -> None:
        """Ends the process, which holds a model in memory."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a question that it did not live to read
                self._process.stdin.close()


def start(peer: Peer, say: Callable[[str], None], threads: int) -> Worker:
    """The peer's process. Failed where there are no scripts, as in a wheel, or no environment."""
    script = SCRIPTS / peer.script
    if not script.exists():
        raise Failed(f"needs a checkout of this project, with {peer.script} in tests/benchmarks")
    python = environment(peer, say)
    log = cache_folder() / "bench" / f"{peer.environment}.log"
    return Worker([str(python), str(script)], log, threads)
