"""Programs that mean harm, each in a real sandbox: its outcome is right, the host is as it was, and the
next job runs as ever."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfevolve_jax.dgm.sandbox import cgroups, uids
from selfevolve_jax.dgm.sandbox.bubblewrap import PLACE, Bubblewrap, open_bubblewrap
from selfevolve_jax.dgm.sandbox.job import SOCKET, Job, Limits, Outcome, SandboxError
from selfevolve_jax.dgm.sandbox.pythons import python

pytestmark = pytest.mark.sandbox
SECRET = "SELFEVOLVE_TEST_SECRET_9f2c"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="a limit that only root can set")


@pytest.fixture(scope="module")
def box():
    os.environ[SECRET] = SECRET
    with open_bubblewrap(workers=2) as box:
        yield box
    del os.environ[SECRET]


@pytest.fixture(autouse=True)
def unharmed(box: Bubblewrap):
    """After every test nothing of the sandbox's is left on the host, and it still works."""
    mounts = Path("/proc/self/mountinfo").read_text()
    yield
    assert processes(box) == []
    assert groups(box) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    if box.stack.privileged:
        assert list(PLACE.iterdir()) == []
        assert owned(box) == []
    said = box.run(Job(("echo", "well"), limits=Limits(wall_s=20)))
    assert (said.exit_code, said.ended, said.stdout) == (0, "", b"well\n")


def processes(box: Bubblewrap) -> list[str]:
    """What runs on the host with a uid of the box's slots; as an ordinary user, what bwrap runs."""
    found: list[str] = []
    mine = {slot.uid for slot in box.slots}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and path.stat().st_uid in mine:
                name = (path / "comm").read_text().strip()
                if box.stack.privileged or name == "bwrap":
                    found.append(f"{path.name} {name}")
        except OSError:
            continue
    return found


def groups(box: Bubblewrap) -> list[Path]:
    parents = set(box.stack.groups.parents.values())
    return [p for parent in parents for p in parent.glob(f"{cgroups.owner()}-*")]


def owned(box: Bubblewrap) -> list[Path]:
    """Files of a slot's uid where anyone may write."""
    mine = {slot.uid for slot in box.slots}
    places = (Path(p) for p in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/"))
    return [p for place in places for p in place.iterdir() if p.lstat().st_uid in mine]


def run(box: Bubblewrap, code: str, collect: tuple[str, ...] = (), **limits) -> Outcome:
    start, mounts = python(box)
    return box.run(
        Job(
            (*start, "-c", code),
            mounts=mounts,
            collect=collect,
            limits=Limits(**{"wall_s": 20.0, "memory_mib": 256, **limits}),
        )
    )


def told(outcome: Outcome):
    """What a program printed as JSON before it ended by itself, in order."""
    assert (outcome.ended, outcome.exit_code) == ("", 0), outcome
    return json.loads(outcome.stdout)


# Too many, too much, too long


@pytest.mark.parametrize(
    "more", ["os.fork()", "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"]
)
def test_fork_and_thread_bombs(box, more):
    code = f"""
import os, threading, time
most = 0
while True:
    try:
        {more}
    except (OSError, RuntimeError):
        time.sleep(0.01)
"""
    outcome = run(box, code, wall_s=1.5, processes=40)
    assert (outcome.ended, outcome.exit_code) == ("wall time", None)


@root_only
def test_processes_are_counted_together(box):
    code = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(60)
        made += 1
except BlockingIOError:
    pass
print(made)
"""
    made = told(run(box, code, processes=30))
    assert 25 <= made < 34


HOG = "b = bytearray(); [b.extend(bytes(1 << 20)) for _ in range(1000)]"
MEMORY = {
    "one process": HOG,
    "eight children, and a parent that does not mind": """
import os
for _ in range(8):
    if os.fork() == 0:
        b = bytearray(os.urandom(1 << 20) * 30)
        import time; time.sleep(2); os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: break
""",
    "files in /dev/shm": """
import os
for n in range(60):
    open(f"/dev/shm/{n}", "wb").write(bytes(1 << 20))
    open(f"/tmp/{n}", "wb").write(bytes(1 << 20))
""",
    "a memory file": """
import os
kept = [os.memfd_create("m") for _ in range(20)]
for fd in kept:
    for n in range(15): os.write(fd, bytes(1 << 20))
""",
    "shared memory of System V": """
import ctypes
libc = ctypes.CDLL(None); libc.shmat.restype = ctypes.c_void_p
for n in range(20):
    at = libc.shmat(libc.shmget(0, 15 << 20, 0o1600), None, 0)
    ctypes.memset(ctypes.c_void_p(at), 1, 15 << 20)
""",
}


@root_only
@pytest.mark.parametrize("how", MEMORY)
def test_memory_bombs(box, how):
    outcome = run(box, MEMORY[how], memory_mib=100)
    assert (outcome.ended, outcome.exit_code) == ("memory", None)


def test_a_full_disk(box):
    outcome = run(box, "open('f', 'wb').write(bytes(9 << 20))", work_mib=8)
    assert (outcome.ended, outcome.exit_code) == ("disk", None)
    assert b"No space left" in outcome.stderr


@root_only
def test_a_million_files(box):
    code = "for n in range(10**6): open(str(n), 'w').close()"
    outcome = run(box, code, work_files=500)
    assert (outcome.ended, outcome.exit_code) == ("disk", None)


def test_a_terabyte_at_once(box):
    code = """
import os
try: os.truncate(os.open("big", os.O_CREAT | os.O_RDWR), 1 << 40)
except OSError as e: print(e.errno)
os.truncate("big", 30 << 20)
"""
    outcome = run(box, code, collect=("big",), collected_bytes=1 << 20)
    assert told(outcome) == errno.EFBIG
    assert outcome.files == {}
    assert outcome.refused == (
        ("big", f"{30 << 20} bytes; {1 << 20} are left of what may be copied out"),
    )


def test_folders_without_end(box):
    code = """
import os
for n in range(15_000):
    os.mkdir("d"); os.chdir("d")
open("bottom", "w").close()
"""
    outcome = run(box, code, collect=(".",))
    assert (outcome.ended, outcome.exit_code, outcome.files) == ("", 0, {})
    ((path, why),) = outcome.refused
    assert set(path.split("/")) == {"d"} and why == "too deep"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end(box, stream):
    code = f"import sys\nwhile True: sys.{stream}.buffer.write(b'x' * 65536)"
    outcome = run(box, code, wall_s=1.0, output_bytes=1000)
    assert (outcome.ended, outcome.truncated) == ("wall time", True)
    assert getattr(outcome, stream) == b"x" * 1000


def test_output_of_just_the_cap(box):
    outcome = run(box, "print('x' * 999)", output_bytes=1000)
    assert (len(outcome.stdout), outcome.truncated) == (1000, False)
    assert run(box, "print('x' * 1000)", output_bytes=1000).truncated


def test_much_output_that_ends(box):
    outcome = run(
        box, "import os; [os.write(1, b'x' * 65536) for _ in range(100)]", output_bytes=10
    )
    assert (outcome.exit_code, outcome.ended, outcome.stdout) == (0, "", b"x" * 10)


@pytest.mark.parametrize("then", ["time.sleep(99)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_deaf_to_every_signal(box, then):
    code = f"""
import os, signal, time
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
{then}
"""
    outcome = run(box, code, wall_s=1.0)
    assert (outcome.ended, outcome.exit_code) == ("wall time", None)


def test_cpu_time(box):
    outcome = run(box, "while True: pass", cpu_s=1.0)
    assert (outcome.ended, outcome.exit_code) == ("CPU time", None)


@root_only
def test_cpu_time_of_all_together(box):
    code = "import os; [os.fork() for _ in range(3)]\nwhile True: pass"
    outcome = run(box, code, cpu_s=1.0)  # eight processes: none has had a second by then
    assert (outcome.ended, outcome.exit_code) == ("CPU time", None)
    assert outcome.cpu_s >= 1.0


def test_a_daemon_ends_with_its_job(box):
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        n = 0
        while True:
            print("alive", flush=True); time.sleep(0.05)
    os._exit(0)
time.sleep(0.3)
"""
    outcome = run(box, code, wall_s=19.0)
    assert (outcome.exit_code, outcome.ended) == (0, "")
    assert b"alive" in outcome.stdout


def test_limits_cannot_be_raised(box):
    code = """
import json, resource
failed = []
for name in ("NOFILE", "CPU", "FSIZE", "NPROC", "MEMLOCK", "CORE"):
    what = getattr(resource, f"RLIMIT_{name}")
    soft, hard = resource.getrlimit(what)
    try: resource.setrlimit(what, (soft, hard + 1))
    except ValueError: failed.append(name)
print(json.dumps(failed))
"""
    assert told(run(box, code)) == ["NOFILE", "CPU", "FSIZE", "NPROC", "MEMLOCK", "CORE"]


# Looking and reaching out


def test_secrets_are_not_seen(box, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    os.chmod(tmp_path / "secret", 0o644)
    code = f"""
import glob, json, os
seen = [p for p in ("/etc/shadow", "/root", "/home", "/var", "/sys", "/boot", "/mnt", "/opt",
                    "/proc/1/root/etc/shadow", {str(tmp_path)!r}) if os.path.exists(p)]
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try: text = open(path, "rb").read()
    except OSError: continue
    # spelt backwards, for this program is on a command line itself
    if any(word[::-1] in text for word in ({SECRET[::-1].encode()!r}, b"dnib-or--")):
        seen.append(path)
for path in ("/proc/1/mem", "/dev/mem", "/dev/kmem", "/dev/vda", "/dev/sda", "/proc/kcore"):
    try: open(path, "rb").read(1); seen.append(path)
    except OSError: pass
print(json.dumps(seen))
"""
    assert told(run(box, code)) == []


def test_process_one_has_an_empty_past(box):
    """bwrap --clearenv would leave its own environment there."""
    outcome = box.run(Job(("cat", "/proc/1/environ")))
    assert outcome.stdout in (b"", b"PWD=/work\0")


def test_the_environment_is_what_was_given(box):
    said = box.run(Job(("env",), env={"GIVEN": "to see", "PATH": "/usr/bin"})).stdout
    assert sorted(said.splitlines()) == [
        *(b"GIVEN=to see", b"HOME=/work", b"LANG=C.UTF-8", b"PATH=/usr/bin"),
    ]


def test_no_descriptor_is_inherited(box):
    assert told(run(box, "import os; print([int(fd) for fd in os.listdir('/proc/self/fd')])")) in (
        [0, 1, 2, 3],  # 3 is the listing's own
    )
    code = "import json, os; print(json.dumps(sorted(os.listdir('/proc/1/fd'))))"
    assert set(told(run(box, code))) <= {"0", "1", "2", "3", "10"}  # the shell's copy of stderr


def test_nothing_else_may_be_written(box, tmp_path):
    (tmp_path / "given").write_text("as it was")
    os.chmod(tmp_path / "given", 0o666)
    code = """
import json, os
wrote = []
for path in ("/x", "/usr/x", "/usr/bin/python3", "/etc/x", "/etc/passwd", "/dev/x", "/run/x", "/proc/x",
             "/lib/x", "/bin/x", "/given", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
             "/proc/1/oom_score_adj"):
    try: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)); wrote.append(path)
    except OSError: pass
for path in ("/usr", "/etc", "/"):
    try: os.chmod(path, 0o777); wrote.append(path)
    except OSError: pass
for path in ("/work/x", "/tmp/x", "/dev/shm/x"): open(path, "w").close()
print(json.dumps(wrote))
"""
    start, mounts = python(box)
    job = Job((*start, "-c", code), mounts={**mounts, "/given": str(tmp_path / "given")})
    assert told(box.run(job)) in ([], ["/proc/1/oom_score_adj"])
    assert (tmp_path / "given").read_text() == "as it was"


def test_no_network(box):
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as abstract:
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0selfevolve-test-{os.getpid()}")
        abstract.listen()
        for listening in (server, abstract):
            listening.setblocking(False)
        code = f"""
import json, socket
def tries(what):
    try: what(); return "reached"
    except OSError as e: return type(e).__name__
def abstract(): socket.socket(socket.AF_UNIX).connect("\\0selfevolve-test-{os.getpid()}")
def datagram(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))
print(json.dumps([
    tries(lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2)),
    tries(abstract),
    tries(lambda: socket.getaddrinfo("example.com", 80)),
    tries(datagram),
    tries(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    [name for _, name in socket.if_nameindex()],
]))
"""
        assert told(run(box, code)) == [
            *("ConnectionRefusedError", "ConnectionRefusedError", "gaierror", "OSError", "OSError"),
            ["lo"],
        ]
        for listening in (server, abstract):
            with contextlib.suppress(BlockingIOError):
                heard.append(listening.accept())
        abstract.close()
    assert heard == []


def test_no_unix_socket_of_the_host_is_in_reach(box):
    """Every path of the host's /proc/net/unix is tried inside."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    paths = [line.split()[-1] for line in lines if len(line.split()) == 8]
    with socket.socket(socket.AF_UNIX) as server:
        path = f"/tmp/selfevolve-test-{os.getpid()}.sock"
        server.bind(path)
        os.chmod(path, 0o777)
        server.listen()
        try:
            code = f"""
import socket
reached = []
for path in {[path, *paths]!r}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try: socket.socket(socket.AF_UNIX, kind).connect(path.replace("@", "\\0", 1))
        except OSError: continue
        reached.append(path)
print(reached)
"""
            assert told(run(box, code)) == []
        finally:
            os.unlink(path)


def test_the_one_socket_is_in_reach(box, tmp_path):
    """Even below a folder of mode 0700, and for two jobs at once."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    code = f"""
import socket
s = socket.socket(socket.AF_UNIX); s.connect({SOCKET!r}); s.send(b"ping"); print(s.recv(9).decode())
"""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "model.sock"))
        server.listen()

        def answer():
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    assert connection.recv(9) == b"ping"
                    connection.send(b"pong")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        start, mounts = python(box)
        job = Job((*start, "-c", code), mounts=mounts, socket=str(folder / "model.sock"))
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(box.run, [job, job]))
        assert [o.stdout for o in outcomes] == [b"pong\n", b"pong\n"]
        thread.join(5)
        assert not (os.stat(folder / "model.sock").st_mode & 0o007)


def test_host_processes_are_out_of_reach(box):
    with subprocess.Popen(["sleep", "60"]) as host:
        code = f"""
import json, os, signal
hit = []
for pid in (*range(2, 400), {host.pid}, {os.getpid()}):
    if pid == os.getpid(): continue
    try: os.kill(pid, signal.SIGKILL); hit.append(pid)
    except ProcessLookupError: pass
    except PermissionError: hit.append(pid)
try: os.kill(-1, signal.SIGTERM)
except OSError: pass
print(json.dumps([hit, len([p for p in os.listdir("/proc") if p.isdigit()])]))
"""
        hit, seen = told(run(box, code))
        assert (hit, host.poll()) == ([], None)
        assert seen <= 3
        host.kill()


@root_only
def test_to_the_host_a_job_is_nobody(box):
    """bwrap started by root would be the host's root, its user namespace notwithstanding."""
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(box.run, Job(("sleep", "1")))
        time.sleep(0.5)
        (group,) = {p.name: p for p in groups(box)}.values()
        pids = (group / "cgroup.procs").read_text().split()
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        assert job.result().exit_code == 0
    assert len(pids) >= 3  # bwrap, process 1, the job
    slots = {slot.uid for slot in box.slots}
    for text in status:
        lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert {int(uid) for uid in lines["Uid"].split()} <= slots
        assert lines["Groups"].strip() == "" and lines["NoNewPrivs"] == "1"


def test_a_job_has_no_capabilities(box):
    code = """
import json
lines = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps([lines[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp")]))
"""
    assert told(run(box, code)) == ["0" * 16] * 5 + ["2"]


# System calls

CALLS = """
import ctypes, errno, fcntl, json, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
number = lambda x86, aarch64: aarch64 if arm else x86
def call(nr, *arguments):
    ctypes.set_errno(0)
    arguments = [a if isinstance(a, bytes) else ctypes.c_ulong(a) for a in arguments]
    got = libc.syscall(ctypes.c_long(nr), *arguments)
    return errno.errorcode.get(ctypes.get_errno(), "none") if got == -1 else "done"
def tries(what):
    try: what(); return "done"
    except OSError as e: return errno.errorcode[e.errno]
HIGH = 1 << 32  # what an int argument does not see
_, slave = os.openpty()
said = {
    "ptrace TRACEME": call(number(101, 117), 0, 0, 0, 0),
    "process_vm_readv": call(number(310, 270), 1, 0, 0, 0, 0, 0),
    "setuid 0": tries(lambda: os.setuid(0)),
    "setgroups": tries(lambda: os.setgroups([0])),
    "mknod": tries(lambda: os.mknod("device", 0o20666, os.makedev(1, 1))),
    "mount": call(number(165, 40), b"none", b"/tmp", b"tmpfs", 0, 0),
    "umount2": call(number(166, 39), b"/usr", 2),
    "pivot_root": call(number(155, 41), b"/tmp", b"/tmp"),
    "chroot": tries(lambda: os.chroot("/tmp")),
    "unshare user": call(number(272, 97), 0x10000000),
    "unshare files": call(number(272, 97), 0x400),
    "setns": call(number(308, 268), 0, 0),
    "clone user": call(number(56, 220), 0x10000000 | 17, 0, 0, 0, 0),
    "clone mounts": call(number(56, 220), 0x20000 | 17, 0, 0, 0, 0),
    "clone3": call(435, 0, 0),
    "open_tree": call(428, 0, b"/", 1),
    "fsopen": call(430, b"tmpfs", 0),
    "bpf": call(number(321, 280), 0, 0, 0),
    "perf_event_open": call(number(298, 241), 0, 0, 0, 0, 0),
    "userfaultfd": call(number(323, 282), 0),
    "io_uring_setup": call(425, 1, 0),
    "io_uring_enter": call(426, 0, 0, 0, 0, 0, 0),
    "io_uring_register": call(427, 0, 0, 0, 0),
    "keyctl": call(number(250, 219), 0, 0, 0, 0, 0),
    "add_key": call(number(248, 217), b"user", b"k", b"v", 1, 0xFFFFFFFD),
    "request_key": call(number(249, 218), b"user", b"k", 0, 0),
    "open_by_handle_at": call(number(304, 265), 0, 0, 0),
    "personality": call(number(135, 92), 0x40000),
    "init_module": call(number(175, 105), 0, 0, 0),
    "kexec_load": call(number(246, 104), 0, 0, 0, 0),
    "settimeofday": call(number(164, 170), 0, 0),
    "sethostname": call(number(170, 161), b"x", 1),
    "swapon": call(number(167, 224), b"/tmp/x", 0),
    "reboot": call(number(169, 142), 0, 0, 0, 0),
    "pidfd_getfd": call(438, 0, 0, 0),
    "TIOCSTI": call(number(16, 29), slave, 0x5412, b"x"),
    "TIOCSTI with high bits": call(number(16, 29), slave, 0x5412 + HIGH, b"x"),
    "TIOCLINUX": call(number(16, 29), slave, 0x541C, b"x"),
    "AF_VSOCK": call(number(41, 198), 40, 1, 0),
    "AF_VSOCK with high bits": call(number(41, 198), 40 + HIGH, 1, 0),
    "AF_VSOCK pair": call(number(53, 199), 40, 1, 0, b"12345678"),
    "AF_ALG": call(number(41, 198), 38, 5, 0),
    "AF_PACKET": call(number(41, 198), 17, 3, 0),
    "AF_BLUETOOTH": call(number(41, 198), 31, 3, 0),
    "AF_KEY": call(number(41, 198), 15, 3, 2),
    "AF_AX25": call(number(41, 198), 3, 1, 0),
    "AF_INET": call(number(41, 198), 2, 1, 0),
    "AF_NETLINK": call(number(41, 198), 16, 3, 0),
}
print(json.dumps(said))
"""
# setuid 0: there is no such uid inside
OTHERWISE = {"AF_INET": "done", "AF_NETLINK": "done", "clone3": "ENOSYS", "setuid 0": "EINVAL"}


def test_system_calls(box):
    said = told(run(box, CALLS))
    assert said == {name: OTHERWISE.get(name, "EPERM") for name in said}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="other ABIs of x86-64")
@pytest.mark.parametrize(
    "machine_code",
    [
        "b8 66 01 00 00 cd 80 c3",  # int 0x80: keyctl's neighbour, 358, of the 32-bit table
        "b8 14 00 00 00 cd 80 c3",  # int 0x80: getpid
        "b8 27 00 00 40 0f 05 c3",  # x32: getpid
    ],
)
def test_system_calls_of_other_abis(box, machine_code):
    code = f"""
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex({machine_code!r}))
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(at)(), flush=True)
"""
    outcome = run(box, code)
    assert outcome.exit_code in (-signal.SIGSYS, -signal.SIGSEGV) or int(outcome.stdout) < 0, (
        outcome
    )
    assert outcome.ended == ""


@pytest.mark.parametrize(
    "argv",
    [
        ("unshare", "--user", "--map-root-user", "true"),
        ("unshare", "--mount", "true"),
        ("mount", "-t", "tmpfs", "none", "/tmp"),
        ("su", "-c", "true"),
        ("chroot", "/", "true"),
        ("nsenter", "--target", "1", "--all", "true"),
        ("setpriv", "--reuid", "0", "true"),
        ("bwrap", "--ro-bind", "/", "/", "true"),
    ],
)
def test_programs_that_would_climb_out(box, argv):
    outcome = box.run(Job(argv, limits=Limits(wall_s=20)))
    assert outcome.exit_code not in (0, None), outcome


# What comes out


def test_copy_out_takes_regular_files_alone(box):
    code = r"""
import os, socket
os.makedirs("d/e"); open("d/e/plain", "w").write("plain")
os.symlink("/etc/shadow", "to shadow"); os.symlink("d/e/plain", "inside"); os.symlink("/usr", "tree")
os.symlink("..", "d/up"); os.symlink("/proc/self/root", "magic")
open("one", "w").write("twice"); os.link("one", "other")
os.mkfifo("fifo"); socket.socket(socket.AF_UNIX).bind("socket")
open("setuid", "w").close(); os.chmod("setuid", 0o6755)
open("locked", "w").write("locked"); os.chmod("locked", 0)
open(b"not\xffutf-8", "w").close()
open("\x1b]0;owned\x07\x1b[2J\nname", "w").write("escape")
open("\N{SNOWMAN}", "w").write("snow")
os.mkdir("shut"); open("shut/in", "w").write("in"); os.chmod("shut", 0)
"""
    outcome = run(box, code, collect=(".", "tree/bin/sh", "to shadow", "not there"))
    assert (outcome.ended, outcome.exit_code) == ("", 0), outcome.stderr
    assert outcome.files == {
        "d/e/plain": b"plain",
        "setuid": b"",
        **({"locked": b"locked", "shut/in": b"in"} if box.stack.privileged else {}),
        "\N{SNOWMAN}": b"snow",
    }
    refused = dict(outcome.refused)
    link = "a symbolic link"
    assert {
        p: refused[p] for p in ("to shadow", "inside", "tree", "d/up", "magic", "tree/bin/sh")
    } == (dict.fromkeys(("to shadow", "inside", "tree", "d/up", "magic", "tree/bin/sh"), link))
    assert "hard link" in refused["one"] and "hard link" in refused["other"]
    assert refused["fifo"] == "not a regular file"
    assert "socket" in refused
    assert refused["not\\xffutf-8"] == "its name is not UTF-8"
    assert refused[r"\x1b]0;owned\x07\x1b[2J\nname"] == "its name has control characters"
    assert all(path.isprintable() and why.isprintable() for path, why in outcome.refused)


def test_copy_out_is_capped(box):
    code = """
for n in range(50): open(f"{n:02}", "wb").write(bytes(1000))
import zlib
with open("bomb.gz", "wb") as f: f.write(zlib.compress(bytes(30 << 20)))
with open("hole", "wb") as f: f.truncate(60 << 20)
"""
    few = run(box, code, collect=(".",), collected_files=10)
    assert list(few.files) == [f"{n:02}" for n in range(10)]
    assert all(why == "more files than may be copied out" for _, why in few.refused)
    small = run(box, code, collect=(".",), collected_bytes=50_000)
    assert len(small.files) == 50 and sum(map(len, small.files.values())) == 50_000
    assert [path for path, _ in small.refused] == ["bomb.gz", "hole"]
    packed = run(box, code, collect=("bomb.gz",))
    assert len(packed.files["bomb.gz"]) < 100_000  # it is never unpacked


def test_what_is_swapped_for_a_link_is_not_followed(box):
    """A daemon that exchanges a file for a link all the time is dead before anything is read."""
    code = """
import os, time
os.mkdir("real"); open("real/f", "w").write("real")
os.symlink("/etc", "link")
if os.fork() == 0:
    while True:
        os.rename("real", "x"); os.rename("link", "real")
        os.rename("real", "link"); os.rename("x", "real")
time.sleep(0.2)
"""
    for _ in range(5):
        outcome = run(box, code, collect=("real",))
        assert set(outcome.files.values()) <= {b"real"}


# Its own faults


def test_a_nul_is_no_way_to_bwraps_options(box):
    for job in (
        Job(("true",), env={"A": "x\0--bind\0/\0/host"}),
        Job(("true",), env={"A\0--bind": "x"}),
        Job(("true",), env={"A=B": "x"}),
        Job(
            ("true", "\0"),
        ),
        Job(("true",), mounts={"/host\0--bind\0/\0/host": "/usr"}),
        Job(("true",), mounts={"relative": "/usr"}),
        Job(("true",), mounts={"/a/../b": "/usr"}),
        Job(("true",), files={"../x": b""}),
        Job(("true",), files={"/x": b""}),
        Job(("true",), files={"a": b"", "a/b": b""}),
    ):
        with pytest.raises(ValueError):
            box.run(job)


def test_programs_that_are_not_there(box):
    assert box.run(Job(("no-such-program",))).exit_code == 127
    with pytest.raises(SandboxError, match="is not there"):
        box.run(Job(("true",), mounts={"/data": "/no/such/folder"}))


def test_files_that_do_not_fit(box):
    outcome = box.run(Job(("true",), files={"big": bytes(3 << 20)}, limits=Limits(work_mib=2)))
    assert (outcome.ended, outcome.exit_code) == ("disk", None)


def test_own_signals_and_codes(box):
    assert run(box, "raise SystemExit(7)").exit_code == 7
    outcome = run(box, "import os; os.kill(os.getpid(), 9)")
    assert (outcome.exit_code, outcome.ended, outcome.stderr) == (-9, "", b"")
    assert run(box, "import os; os.abort()").exit_code == -signal.SIGABRT


def test_stdin_and_more_jobs_than_slots(box):
    def one(n: int) -> bytes:
        return box.run(Job(("cat",), stdin=str(n).encode() * 100_000)).stdout

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [str(n).encode() * 100_000 for n in range(6)]
    assert box.run(Job(("true",), stdin=bytes(1 << 20))).exit_code == 0  # it is not read


def test_jobs_do_not_see_each_other(box):
    code = (
        "import os, time; open('/tmp/mark', 'w').close(); open('mark', 'w').close(); time.sleep(1)"
    )
    look = "import os; print([len(os.listdir(p)) for p in ('/tmp', '/work', '/dev/shm')])"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, box, code)
        time.sleep(0.4)
        assert told(run(box, look)) == [0, 0, 0]
        assert first.result().exit_code == 0
    assert told(run(box, look)) == [0, 0, 0]


def test_close_ends_what_runs():
    box = open_bubblewrap(workers=1)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(box.run, Job(("sleep", "50"))) for _ in range(2)]
        time.sleep(0.5)
        box.close()
        for each in waiting:
            with pytest.raises(SandboxError, match="closed"):
                each.result(20)
    assert groups(box) == []  # which cannot be removed before all in them are dead
    with pytest.raises(SandboxError, match="closed"):
        box.run(Job(("true",)))


CONTROLLER = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path[:0] = {path!r}
from selfevolve_jax.dgm.sandbox.bubblewrap import open_bubblewrap
from selfevolve_jax.dgm.sandbox.job import Job, Limits
box = open_bubblewrap(1)
job = Job(("sleep", "300"), limits=Limits(wall_s=300))
threading.Thread(target=box.run, args=(job,), daemon=True).start()
time.sleep(0.5)
print("started", flush=True)
time.sleep(300)
"""


@root_only
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_controller_that_dies_takes_its_jobs_along(box, how):
    code = CONTROLLER.format(path=sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as controller:
        assert controller.stdout
        assert controller.stdout.readline() == b"started\n"
        name = cgroups.owner(controller.pid)
        parents = set(box.stack.groups.parents.values())
        left = [p for parent in parents for p in parent.glob(f"{name}-*")]
        assert left and all((p / "cgroup.procs").read_text() for p in left)
        controller.send_signal(how)
        try:
            controller.wait(10)
        finally:
            controller.kill()
    end = time.monotonic() + 10
    while time.monotonic() < end and any((p / "cgroup.procs").read_text() for p in left):
        time.sleep(0.02)
    assert not any((p / "cgroup.procs").read_text() for p in left)
    with open_bubblewrap(workers=1) as second:  # it clears up
        assert not any(p.exists() for p in left)
        assert second.run(Job(("true",))).exit_code == 0


AS_USER = """
import json, os, sys
sys.path[:0] = {path!r}
import pyseccomp
os.setgroups([]); os.setresgid(54321, 54321, 54321); os.setresuid(54321, 54321, 54321)
from selfevolve_jax.dgm.sandbox.bubblewrap import open_bubblewrap
from selfevolve_jax.dgm.sandbox.job import Job, Limits
FORK = '''
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.01)
'''
DAEMON = "import os, time\\nif os.fork() == 0: os.setsid(); time.sleep(300)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
with open_bubblewrap(1) as box:
    run = lambda code, **limits: box.run(Job(("/usr/bin/python3", "-c", code), limits=Limits(**limits)))
    said = [
        run(FORK, wall_s=1.5, processes=30).ended,
        run("open('f', 'wb').write(bytes(9 << 20))", work_mib=8).ended,
        run(DAEMON).exit_code,
        run(DEAF, wall_s=1).ended,
        run("while True: pass", cpu_s=1).ended,
        run("bytearray(200 << 20)", memory_mib=100).exit_code,
        run("open('/etc/shadow')").exit_code,
    ]
    job = Job(("sh", "-c", "cat a/b > c; ln -s c d"), files={{"a/b": b"x"}}, collect=(".",))
    taken = box.run(job)
    unenforced = [line.split(":")[0] for line in box.unenforced]
    print(json.dumps([said, sorted(taken.files), taken.refused, unenforced]))
"""


@root_only
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="no Python for all users")
def test_what_holds_for_an_ordinary_user(box):
    """The notes: a fork bomb, a full disk, daemons and the deaf are held without root too."""
    import pyseccomp

    path = [str(Path(__file__).parents[2]), str(Path(pyseccomp.__file__).parent)]
    done = subprocess.run(
        ["/usr/bin/python3", "-c", AS_USER.format(path=path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={},
    )
    if "Permission denied" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip("the checkout or its packages cannot be read by all users")
    said, files, refused, unenforced = json.loads(done.stdout or f"[{done.stderr!r}]")
    assert said == ["wall time", "disk", 0, "wall time", "CPU time", 1, 1]
    assert files == ["a/b", "c"]
    assert refused == [["d", "a symbolic link"]]
    assert unenforced == ["memory", "processes", "CPU time", "work_files", "uid"]
    assert 54321 not in uids.in_use()
