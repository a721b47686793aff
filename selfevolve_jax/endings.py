"""How a run ends before its last step: by a signal, by broken numbers, by a rule that says stop."""

from __future__ import annotations

import math
import signal
import threading
from contextlib import contextmanager
from typing import Any

from etils import epath

from selfevolve_jax import hosts
from selfevolve_jax.errors import UserError


class Interrupted(UserError):
    """SIGTERM or Ctrl-C: the state was saved. Code 143, what a shell reports of a terminated child."""

    exit_code = 143


class TrainingFailed(UserError):
    """The numbers broke; the last good checkpoint is kept."""

    exit_code = 1


def words(ended: dict[str, Any]) -> str:
    """What the terminal says of an end. ended: {"why", "step", "restored"}."""
    why = {
        "early_stop": "stopped early: the held-out mean made no more progress",
        "alarm": "stopped by the collapse alarm",
        "steps": "all steps done",
    }[ended["why"]]
    restored = ended["restored"]
    if restored is None:
        return f"{why}, after step {ended['step']}"
    where = "the base policy" if restored == 0 else f"the policy of step {restored}"
    return f"{why}, after step {ended['step']}; {where} is restored"


def stop_if_broken(step: int, metrics: dict[str, Any], folder: epath.Path) -> None:
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
def stop_signals():
    """Yields a function that tells whether SIGTERM or SIGINT came, to any process of the run: all call
    it at the same places, and all are told the same. A second Ctrl-C ends at once."""
    came = threading.Event()

    def told() -> bool:
        return hosts.any_of("agree whether to stop", came.is_set())

    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def note(number, frame):
        if came.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
