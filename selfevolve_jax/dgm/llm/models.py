"""contract.Models: the models of a run. Every call is on the budget and in the log."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from selfevolve_jax.dgm import sockets
from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable, Usage
from selfevolve_jax.dgm.llm import gateway
from selfevolve_jax.dgm.llm.config import ROLES, ModelsConfig
from selfevolve_jax.dgm.llm.log import CallLog
from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.endpoint import (
    PLAIN,
    Answer,
    Down,
    Endpoint,
    Failed,
    Misplaced,
    Refused,
    Stop,
)


class OpenModels:
    """contract.Models, from many threads. Made by open_models."""

    def __init__(self, config: ModelsConfig, run: str | os.PathLike[str]) -> None:
        self._config = config
        # One endpoint for roles that share it, under the first one's name.
        distinct = {config.of(role): role for role in reversed(ROLES)}
        endpoints = {model: _opened(model, role) for model, role in distinct.items()}
        self._endpoints = {role: endpoints[config.of(role)] for role in ROLES}
        self._distinct = {role: endpoints[model] for model, role in distinct.items()}
        self._log = CallLog(run, self._hide)
        self.torn = self._log.torn
        self._at_close = contextlib.ExitStack()
        self._folder = self._at_close.enter_context(sockets.folder())

    def usage(self) -> Usage:
        """So far, earlier lives of a resumed run included."""
        return self._log.usage

    def preflight(self, say: Callable[[str], None] = print) -> None:
        """One short call of each endpoint, and one line said. UserError says what is wrong. May raise
        BudgetSpent. Writes nothing: `log_preflight` does, once there is a run."""
        for role, endpoint in reversed(self._distinct.items()):
            self._check_budget()
            try:
                answer = self._logged(role, PLAIN, "preflight", endpoint.preflight, hold=True)
            except Failed as error:
                raise UserError(f"the {role} model: {error}") from error
            say(f"{role}: {endpoint.described(answer)}")

    def log_preflight(self) -> None:
        self._log.write_held()

    def chat(
        self, role: str, messages: Sequence[Mapping[str, Any]], purpose: str
    ) -> tuple[str, Usage]:
        """As in the contract. The text may be empty. Refused (a UserError) where the endpoint answers,
        but not this request; UserError where it will answer none."""
        self._config.of(role)  # is there such a role?
        spent: list[Usage] = []
        try:
            answer = self._call(role, purpose, {"messages": list(messages)}, None, spent.append)
        except Down as error:
            raise Unavailable(str(error)) from error
        return answer.text, sum(spent, Usage())

    @contextlib.contextmanager
    def session(self, role: str, purpose: str) -> Iterator[gateway.Session]:
        """As in the contract. What befell the job's calls and is not its fault is raised on leaving:
        Unavailable, BudgetSpent (if a call was denied), UserError. An error from inside goes first."""
        model = self._config.of(role)
        self._check_budget()
        session = gateway.Session(
            ask=functools.partial(self._call, role, purpose),
            most_tokens=model.max_tokens,
            budget=self._config.budget,
            model=role,
            folder=self._folder,
        )
        try:
            yield session
        except BaseException:
            session.close(wait=False)
            raise
        session.close()
        session.raise_if_failed()

    def close(self) -> None:
        """After the last session."""
        self._log.close()
        for endpoint in self._distinct.values():
            endpoint.close()
        self._at_close.close()

    def _call(
        self,
        role: str,
        purpose: str,
        request: Mapping[str, Any],
        stop: Stop | None,
        count: Callable[[Usage], None],
    ) -> Answer:
        """An agent must not be blamed for an endpoint that failed, nor be able to escape its verdict by
        a request that makes one fail. So after a failure that may be either's fault a plain request
        tells: if that is answered, and this one once more is not, it is the request."""
        ask = self._endpoints[role].ask
        for attempts in (None, 1):
            self._check_budget()
            this = functools.partial(ask, request, attempts=attempts, stop=stop)
            try:
                return self._logged(role, request, purpose, this, count)
            except Failed as error:
                if not error.doubtful:
                    raise
                failed = error
            if attempts is None:
                plain = functools.partial(ask, PLAIN, attempts=1)
                self._logged(role, PLAIN, f"probe: {purpose}", plain)
                if stop is not None and stop.is_set():
                    break  # nobody waits for the answer
        reason = f"{failed} (but a plain request is answered)"
        raise Refused(reason, said="the model's server fails at this request") from failed

    def _logged(
        self,
        role: str,
        request: Mapping[str, Any],
        purpose: str,
        ask: Callable[[], Answer],
        count: Callable[[Usage], None] = lambda usage: None,
        hold: bool = False,
    ) -> Answer:
        model = self._config.of(role)
        start = time.monotonic()

        def add(outcome: str, attempts: int, answer: Answer | None = None) -> None:
            tokens = (answer.tokens_in, answer.tokens_out) if answer else (0, 0)
            line = {
                "role": role,
                "purpose": purpose,
                "model": model.model,
                "tokens_in": tokens[0],
                "tokens_out": tokens[1],
                "dollars": model.dollars(*tokens),
                "estimated": answer is not None and answer.estimated,
                "seconds": round(time.monotonic() - start, 3),
                "attempts": attempts,
                "outcome": outcome,
            }
            count(Usage(1, *tokens, line["dollars"]))
            self._log.add(line, request, answer.message if answer else None, hold)

        try:
            answer = ask()
        except Failed as error:
            kinds = {Refused: "refused", Misplaced: "misplaced"}
            add(f"{kinds.get(type(error), 'down')}: {error}", error.attempts)
            raise
        empty = not answer.text and "tool_calls" not in answer.message
        add("cut" if answer.cut else "empty" if empty else "ok", answer.attempts, answer)
        return answer

    def _check_budget(self) -> None:
        budget, usage = self._config.budget, self._log.usage
        tokens = usage.tokens_in + usage.tokens_out
        if budget.dollars is not None and usage.dollars >= budget.dollars:
            raise BudgetSpent(
                f"the models' budget of {budget.dollars:g} dollars is spent ({usage.dollars:.4f})."
            )
        if budget.tokens is not None and tokens >= budget.tokens:
            raise BudgetSpent(f"the models' budget of {budget.tokens} tokens is spent ({tokens}).")

    def _hide(self, data: bytes) -> bytes:
        for endpoint in self._distinct.values():
            data = endpoint.hide(data)
        return data


def open_models(config: ModelsConfig, run: str | os.PathLike[str]) -> OpenModels:
    """The models of the run in this folder, which keeps their log (log.py). Nothing is called yet: see
    preflight. UserError for a model without a name, a client that is not installed, a damaged log."""
    return OpenModels(config, run)


def _opened(model: Any, role: str) -> Endpoint:
    try:
        return Endpoint(model)
    except UserError as error:
        raise UserError(f"the {role} model: {error}") from error
