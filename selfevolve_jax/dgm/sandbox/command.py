"""The command lines that a bubblewrap sandbox is made of, from the host's side inwards.

/bin/sh joins the control groups and becomes setpriv, which drops to the slot's uid and becomes bwrap,
which makes the namespaces and starts prlimit as process 1, which becomes a shell that starts the job
and reaps whatever is orphaned.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfevolve_jax.dgm.sandbox.job import WORK, Job

PATH = "/usr/local/bin:/usr/bin:/bin"
UID = 1000  # what the job sees itself as
SCRATCH_BYTES = 64 << 20  # of /tmp and of /dev/shm, each
OWN_PROCESSES = 4  # beside the job's: bwrap, process 1, and one more of each while they start
# Of the host's /etc only what programs need to be found and linked; openjdk's folder is a part of it.
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "java-*-openjdk")
PASSWD = b"job:x:1000:1000::/work:/bin/sh\n"
GROUP = b"job:x:1000:\n"
STARTED = "/.started"  # a folder inside that tells the finished root from the host's

JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 120; shift; done; shift; exec "$@"'
# Its own stderr is not the job's: it would write "Killed" there.
INIT = 'exec 3>&2 2>/dev/null; (exec /usr/bin/env -i "$@" 2>&3 3>&-); exit $?'


def outside(
    groups: Sequence[Path], uid: int | None, gid: int | None, bwrap: str, fds: Mapping[str, int]
) -> list[str]:
    """Up to bwrap's "--". uid, gid: to drop to, None where the controller's own is kept. fds: of the
    pipes and files that bwrap reads and writes ("status", "arguments", maybe "held")."""
    argv = ["/bin/sh", "-c", JOIN, "sh", *(str(group / "cgroup.procs") for group in groups), "--"]
    argv += ["/usr/bin/setpriv", "--no-new-privs", "--pdeathsig", "KILL"]
    if uid is not None:
        argv += ["--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        argv += ["--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all"]
    argv += [bwrap, "--json-status-fd", str(fds["status"]), "--args", str(fds["arguments"])]
    if "held" in fds:
        argv += ["--block-fd", str(fds["held"])]
    return [*argv, "--"]


def inside(job: Job, memory_grouped: bool) -> list[str]:
    """What bwrap starts. memory_grouped: a control group holds memory, so no process need be held to it
    alone (programs may map far more than they use). Raises ValueError for an environment that is none.

    The job's environment comes last of all: an LD_PRELOAD must not get at what sets the limits."""
    limits = job.limits
    env = {"PATH": PATH, "HOME": WORK, "LANG": "C.UTF-8", **job.env}
    for name in env:
        if not name or "=" in name:
            raise ValueError(f"not a name of an environment variable: {name!r}")
    if not job.argv or "=" in job.argv[0]:
        raise ValueError(f"not a program that can be started: {job.argv[:1]}")
    cpu_s = math.ceil(limits.cpu_s)
    command = ["/usr/bin/prlimit", "--core=0", "--nofile=1024", "--memlock=65536"]
    command += [f"--fsize={limits.file_mib << 20}", f"--cpu={cpu_s}:{cpu_s + 1}"]
    command += [f"--nproc={limits.processes + OWN_PROCESSES}"]
    if not memory_grouped:
        command += [f"--data={limits.memory_mib << 20}"]
    command += ["--", "/bin/sh", "-c", INIT, "sh"]
    return [*command, *(f"{name}={value}" for name, value in env.items()), *job.argv]


def arguments(
    job: Job, mounts: Mapping[str, str], work: str | None, fds: Mapping[str, int]
) -> bytes:
    """bwrap's, read by it from a file, so that the job sees none of the host's paths in process 1's
    command line. mounts: path inside -> path of the host. work: the host's folder that is /work; None
    makes one of bwrap's own. fds: "filter", "passwd", "group". Raises ValueError for a NUL."""
    a = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    a += ["--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"]
    a += ["--as-pid-1", "--uid", str(UID), "--gid", str(UID), "--hostname", "sandbox"]
    a += ["--seccomp", str(fds["filter"])]
    a += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            a += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            a += ["--ro-bind", str(path), str(path)]
    a += ["--perms", "755", "--dir", "/etc", "--dir", "/run"]
    for pattern in ETC:
        for found in sorted(glob.glob(f"/etc/{pattern}")):
            a += ["--ro-bind", found, found]
    for name in ("passwd", "group"):
        a += ["--perms", "644", "--ro-bind-data", str(fds[name]), f"/etc/{name}"]
    a += ["--proc", "/proc", "--dev", "/dev"]
    a += ["--size", str(SCRATCH_BYTES), "--tmpfs", "/dev/shm"]
    a += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp"]
    if work is None:
        a += ["--size", str(job.limits.work_mib << 20), "--tmpfs", WORK, "--dir", STARTED]
    else:
        a += ["--bind", work, WORK]
    for target, source in mounts.items():
        a += ["--ro-bind", source, target]
    a += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", WORK]
    for argument in a:  # a NUL would start another argument of bwrap's
        if "\0" in argument:
            raise ValueError(f"a NUL in a job's mounts: {argument!r}")
    return b"".join(os.fsencode(argument) + b"\0" for argument in a)
