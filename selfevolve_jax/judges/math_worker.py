"""The process in which math-verify runs: a program, started by file path, that never imports jax.

Answers of a language model are hostile input: some make sympy loop for ever or take all memory, in
C code that no Python exception can interrupt. So this process loads math-verify once and forks; the
child does the checks under the kernel's own limits, and when one of them ends it the parent says so
and forks another, which costs milliseconds where a fresh import costs seconds.

Protocol. In: one JSON list of checks a line; [a] asks whether `a` is usable at all, [a, b] whether
the two are equal. Out: `+` once when ready (anything else is why it cannot start), then one
character a
check: `1`, `0`, or `!` for a check that hit a limit; after `!` the rest of its line is dropped and
has to be sent again. The child ends at the end of its input, so nothing outlives the program it
serves: a child busy at that moment is ended by its limit.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys

MEMORY_BYTES = 2 << 30  # address space of a child; math-verify at rest takes about 0.1 GiB
RECYCLE_AFTER = 20_000  # checks: then a child makes way, before sympy's caches reach its limit
ENDED, RECYCLED, OUT_OF_MEMORY = 0, 10, 11


def balanced(text: str) -> bool:
    """Whether unescaped braces match, so that `text` stays inside the box it is put in."""
    depth, escaped = 0, False
    for char in text:
        if not escaped:
            depth += (char == "{") - (char == "}")
            if depth < 0:
                return False
        escaped = char == "\\" and not escaped
    return depth == 0


@functools.lru_cache(maxsize=4096)
def parsed(answer: str) -> tuple:
    # Imported late, so that main can report a failing import in one line. A timeout of 0 is none:
    # math-verify's own, an alarm signal, is caught or missed in places.
    from math_verify import LatexExtractionConfig, parse

    if not balanced(answer):
        return ()
    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    return tuple(parse(f"\\boxed{{{answer}}}", [config], parsing_timeout=0))


def equal(a: str, b: str) -> bool:
    """Whether math-verify accepts b for a and a for b; one direction alone is not symmetric."""
    from math_verify import verify

    gold, other = list(parsed(a)), list(parsed(b))
    return verify(gold, other, timeout_seconds=0) and verify(other, gold, timeout_seconds=0)


def usable(answer: str) -> bool:
    """Whether `answer` parses and can be compared with something harmless. One that hangs here is
    met once, alone, instead of in a pair with each of its neighbours."""
    equal(answer, "1")
    return bool(parsed(answer))


def check(task: list[str]) -> str:
    try:
        return "01"[usable(*task) if len(task) == 1 else equal(*task)]
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except Exception:  # sympy fails on odd input in every way there is; such input equals nothing
        return "0"


def serve(time_limit_s: float, replies: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    # Never more than one line is in the pipe, so this buffer cannot swallow the next child's.
    requests = open(0, "rb", closefd=False)  # noqa: SIM115
    done = 0
    while done < RECYCLE_AFTER:
        line = requests.readline()
        if not line:
            return ENDED
        for task in json.loads(line):
            # CPU time, so that a busy machine does not change a verdict. SIGPROF's default action
            # ends the process whatever it is in the middle of.
            signal.setitimer(signal.ITIMER_PROF, time_limit_s)
            code = check(task)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(replies, code.encode())
            done += 1
    return RECYCLED


def main(time_limit_s: float) -> int:
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the ANTLR runtime prints its complaints to stdout
    try:
        # A warm-up, which the children inherit: sympy imports half of itself for a pair that is
        # equal, and the other half, 0.5 CPU seconds, for one that is not.
        equal("\\frac{1}{2}", "0.5")
        equal("28%", "1")
    except Exception as error:
        os.write(replies, f"{type(error).__name__}: {error}".encode())
        return 1
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.write(replies, b"+")
    while True:
        child = os.fork()
        if child == 0:
            try:
                os._exit(serve(time_limit_s, replies))
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status in (-signal.SIGPROF, OUT_OF_MEMORY):
            os.write(replies, b"!")
        elif status != RECYCLED:  # the end of input, or a death for no reason we know of
            return status if status >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
