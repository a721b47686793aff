#!/usr/bin/python3
"""Stands in for the program `docker`: writes down what it is told, and runs `run` in bubblewrap,
with no more than the arguments ask for. FAKE_ENGINE is its folder of state."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_ENGINE"])
FLAGS = {"--interactive", "--read-only"}


def main(arguments: list[str]) -> int:
    with open(STATE / "log", "a") as log:
        log.write(json.dumps(arguments) + "\n")
    what, rest = arguments[0], arguments[1:]
    if what == "version":
        return engine_down() if (STATE / "down").exists() else 0
    if what == "image":
        return 1 if (STATE / "no image").exists() else 0
    if what == "ps":
        print((STATE / "ps").read_text() if (STATE / "ps").exists() else "")
        return 0
    if what == "inspect":
        print("true" if (STATE / "oom").exists() else "false")
        return 0
    if what in ("kill", "rm"):
        told = STATE / f"{rest[-1]}.pid"
        if told.exists():
            number = signal.SIGTERM if what == "kill" else signal.SIGKILL
            try:
                os.kill(int(told.read_text()), number)
            except ProcessLookupError:
                return 1
        return 0
    if what == "run":
        return run(rest)
    return 125


def engine_down() -> int:
    print("Cannot connect to the Docker daemon. Is it running?", file=sys.stderr)
    return 1


def run(rest: list[str]) -> int:
    if (STATE / "run fails").exists():
        print("docker: Error response from daemon: no space", file=sys.stderr)
        return 125
    options: dict[str, list[str]] = {}
    while rest[0].startswith("--"):
        name = rest.pop(0)
        options.setdefault(name, []).append("" if name in FLAGS else rest.pop(0))
    command = [*options["--entrypoint"], *rest[1:]]
    b = ["bwrap", "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    b += ["--as-pid-1", "--die-with-parent", "--new-session", "--clearenv"]
    b += [
        "--ro-bind",
        "/usr",
        "/usr",
        "--symlink",
        "usr/bin",
        "/bin",
        "--symlink",
        "usr/lib",
        "/lib",
    ]
    b += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"]
    for given in options["--tmpfs"]:
        path, _, settings = given.partition(":")
        size = dict(s.partition("=")[::2] for s in settings.split(","))["size"]
        bytes_ = int(size[:-1]) << 20 if size.endswith("m") else int(size)
        b += ["--perms", "1777", "--size", str(bytes_), "--tmpfs", path]
    for given in options.get("--mount", []):
        mount = dict(s.partition("=")[::2] for s in given.split(","))
        b += ["--ro-bind", mount["source"], mount["target"]]
    for given in options["--env"]:
        b += ["--setenv", *given.split("=", 1)]
    read, write = os.pipe()
    child = subprocess.Popen(
        [*b, "--chdir", options["--workdir"][0], "--info-fd", str(write), "--", *command],
        pass_fds=(write,),
    )
    os.close(write)
    with open(read) as told:
        pid = json.loads(told.read())["child-pid"]
    (STATE / f"{options['--name'][0]}.pid").write_text(str(pid))
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
