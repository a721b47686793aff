"""How the processes of a run find each other, before JAX connects them.

JAX ends the process, with a stack trace, when a peer does not come in time, and does not say which. So
process 0 first listens on the coordinator's port itself: each process says its index there and waits
for "go". Then the port is given to JAX.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from typing import Any

from selfevolve_jax.errors import UserError

_LINE = 4096  # bytes that a greeting or an answer may have
_PAUSE_S = 0.2  # between two attempts


def meet(coordinator: str, processes: int, index: int, timeout_s: float, told: str = "") -> None:
    """Returns once all `processes` have come to HOST:PORT. told: what must be the same on all of them,
    a version for example.

    UserError naming the address that cannot be reached, or the indices that did not come within
    timeout_s, or what differs.
    """
    host, port = split_address(coordinator)
    greeting = {"index": index, "processes": processes, "told": told}
    if index == 0:
        _receive_all(coordinator, port, greeting, timeout_s)
    else:
        _go_there(coordinator, host, port, greeting, timeout_s)


def split_address(coordinator: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; an IPv6 host may have brackets."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"hosts.coordinator={coordinator!r} is not HOST:PORT. Give the address of process 0 as the "
            "others see it and a free port there: --hosts.coordinator 10.0.0.1:1234."
        )
    return host.strip("[]"), int(port)


def _receive_all(coordinator: str, port: int, greeting: dict[str, Any], timeout_s: float) -> None:
    """Process 0: takes greetings until every index has come, then lets all go."""
    processes, deadline = greeting["processes"], time.monotonic() + timeout_s
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_listen(port))
        except OSError as error:
            raise UserError(
                f"hosts.coordinator={coordinator}: process 0 cannot listen on port {port}: "
                f"{error.strerror}. Choose a free port."
            ) from error
        while len(came) < processes - 1:
            missing = [i for i in range(1, processes) if i not in came]
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer, where = server.accept()
            except TimeoutError:
                words = (
                    f"{_listed(missing)} of {processes} did not come to the coordinator "
                    f"{coordinator} within {timeout_s:g} s. Start every process with the same "
                    "--hosts.coordinator and --hosts.processes, each with its own --hosts.index."
                )
                for one in came.values():
                    _say(one, {"no": words})
                raise UserError(words) from None
            stack.callback(peer.close)
            said = _read(peer, 5.0)
            if said is None or not isinstance(said.get("index"), int):
                continue  # no process of ours: a port scanner, a health check
            wrong = _refused(said, greeting, came)
            if wrong is not None:
                for one in (peer, *came.values()):
                    _say(one, {"no": wrong})
                raise UserError(f"{wrong} (from {where[0]})")
            came[said["index"]] = peer
        for peer in came.values():
            _say(peer, {"go": True})


def _refused(
    said: dict[str, Any], greeting: dict[str, Any], came: dict[int, socket.socket]
) -> str | None:
    index, processes = said["index"], greeting["processes"]
    if said.get("processes") != processes:
        return (
            f"process {index} was started with hosts.processes={said.get('processes')}, and process 0 "
            f"with {processes}. Give all the same."
        )
    if index in came and _gone(came[index]):
        del came[index]  # it was started again meanwhile
    if index in came or not 0 < index < processes:
        return f"two processes have hosts.index={index}. Give each its own, 0 to {processes - 1}."
    if said.get("told") != greeting["told"]:
        return (
            f"process {index} runs {said.get('told')}, and process 0 {greeting['told']}. Install the "
            "same on every host."
        )
    return None


def _go_there(
    coordinator: str, host: str, port: int, greeting: dict[str, Any], timeout_s: float
) -> None:
    """The others: tries until process 0 listens, then waits for its word."""
    deadline, reason = time.monotonic() + timeout_s, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as peer:
                _say(peer, greeting)
                # process 0 gives up by its own clock, which may have begun after ours
                said = _read(peer, timeout_s + 5)
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(_PAUSE_S)
            continue
        if said is not None and "no" in said:
            raise UserError(str(said["no"]))
        if said is not None and "go" in said:
            return
        reason = "it took no greeting, or ended while it waited for the others"
        time.sleep(_PAUSE_S)
    raise UserError(
        f"the coordinator {coordinator} could not be reached from process {greeting['index']} within "
        f"{timeout_s:g} s: {reason}. Is process 0 running there, and is the port open?"
    )


def _listen(port: int) -> socket.socket:
    """On every address of this host, as JAX's own service does."""
    try:
        return socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=socket.has_dualstack_ipv6()
        )
    except OSError:  # a host without IPv6
        return socket.create_server(("", port))


def _say(peer: socket.socket, words: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(json.dumps(words).encode() + b"\n")


def _read(peer: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """One line of JSON; None for anything else, or nothing."""
    data, deadline = b"", time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, ValueError):
        selector.register(peer, selectors.EVENT_READ)
        while not data.endswith(b"\n") and len(data) < _LINE:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return None
            piece = peer.recv(_LINE)
            if not piece:
                return None
            data += piece
        said = json.loads(data)
        return said if isinstance(said, dict) else None
    return None


def _gone(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listed(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (" …" if len(indices) > 8 else "")
    return f"process{'es' * (len(indices) > 1)} {shown}"
