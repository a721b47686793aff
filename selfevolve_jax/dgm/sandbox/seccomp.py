"""The system calls that a job may not make, as a BPF program for bwrap --seccomp.

All is allowed but what reaches past namespaces (AF_VSOCK, io_uring, keys, bpf, perf, new namespaces,
mounts, other processes' memory, the terminal's input) or is the machine's (modules, clocks, swap).
A system call of another ABI (32-bit, x32) ends the process.
"""

from __future__ import annotations

import errno
import functools
import tempfile

from selfevolve_jax.errors import UserError

FIX = "run: uv sync --extra dgm && apt-get install libseccomp2"

DENIED = (
    # the kernel's own machinery
    *("bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie", "syslog", "acct"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("keyctl", "add_key", "request_key"),
    *("init_module", "finit_module", "delete_module", "create_module", "kexec_load"),
    *("kexec_file_load", "reboot", "swapon", "swapoff", "quotactl", "quotactl_fd", "nfsservctl"),
    *("settimeofday", "stime", "clock_settime", "clock_adjtime", "adjtimex"),
    *("ioperm", "iopl", "modify_ldt", "vm86", "vm86old", "personality", "uselib", "sysfs", "ustat"),
    *("sethostname", "setdomainname", "vhangup"),
    # other processes
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd"),
    *("move_pages", "migrate_pages", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    # namespaces and mounts
    *("unshare", "setns", "chroot", "pivot_root", "mount", "umount", "umount2", "mount_setattr"),
    *("fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree"),
    *("name_to_handle_at", "open_by_handle_at"),
)
NEW_NAMESPACES = (
    *(0x80, 0x20000, 0x2000000, 0x4000000),  # CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS
    *(0x8000000, 0x10000000, 0x20000000, 0x40000000),  # NEWIPC, NEWUSER, NEWPID, NEWNET
)
FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type for whoever holds the terminal
LOW = 0xFFFFFFFF  # the kernel looks at an int's 32 bits alone; so must the filter


@functools.cache
def program() -> bytes:
    """The filter for this machine's architecture. Raises UserError without pyseccomp or libseccomp."""
    try:
        import pyseccomp as s
    except Exception as e:  # ImportError; RuntimeError where libseccomp.so.2 is not there
        raise UserError(f"no seccomp filter for the sandbox ({e}); {FIX}") from e
    rules = s.SyscallFilter(s.ALLOW)
    no = s.ERRNO(errno.EPERM)
    for name in DENIED:
        _deny(rules, no, name)
    # its flags lie in memory where no filter can read them: libc falls back to clone
    _deny(rules, s.ERRNO(errno.ENOSYS), "clone3")
    for flag in NEW_NAMESPACES:
        _deny(rules, no, "clone", s.Arg(0, s.MASKED_EQ, flag, flag))
    for request in TERMINAL:
        _deny(rules, no, "ioctl", s.Arg(1, s.MASKED_EQ, LOW, request))
    for call in ("socket", "socketpair"):
        _deny(rules, no, call, s.Arg(0, s.GT, max(FAMILIES)))
        for family in set(range(max(FAMILIES))) - set(FAMILIES):
            _deny(rules, no, call, s.Arg(0, s.EQ, family))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _deny(rules, action: int, name: str, *args) -> None:
    try:
        rules.add_rule(action, name, *args)
    except ValueError:  # a call that this libseccomp has not heard of, or this architecture has not
        return
