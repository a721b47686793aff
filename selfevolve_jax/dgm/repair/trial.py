"""Calls a Python function on a task's cases under a limit of CPU time. Standard library alone: this
file is put into both sandboxes.

For an agent (`import trial`) it is the task's test runner: it holds the visible cases, counts the
candidates and stops the agent at its budget. As a program it is the grader's: it calls an answer on
the inputs and prints what came back, and knows no expected value. Who printed that, the answer's own
code perhaps, does not matter: a value counts if the host finds it equal to the expected one.
"""

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from functools import partial

CANDIDATE_CPU_S = 0.02  # all cases of one candidate; a right one needs under 1 ms
CASE_CPU_S = 0.1  # one case, in grading
MEMORY_BYTES = 400 << 20


class OutOfBudget(Exception):
    """The candidates are used up."""


class TooSlow(BaseException):
    pass


class Clock:
    """`with Clock(s):` raises TooSlow after s seconds of CPU time, and again each 10 ms where a
    candidate swallows it."""

    armed = False

    def __init__(self, cpu_s):
        self._cpu_s = cpu_s
        signal.signal(signal.SIGPROF, self._ring)

    def _ring(self, *_):
        if self.armed:
            raise TooSlow

    def __enter__(self):
        self.armed = True
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s, 0.01)

    def __exit__(self, *_):
        while self.armed:
            with suppress(TooSlow):  # it may ring right here
                signal.setitimer(signal.ITIMER_PROF, 0)
                self.armed = False


def define(source, entry):
    """The function `entry` of a source, freshly made."""
    names: dict = {"__name__": "candidate"}
    exec(compile(source, "candidate.py", "exec"), names)
    return names[entry]


def adapter_in(folder):
    """The `adapt` of the folder's adapter.py, a function (entry, function, *plain arguments) that gives
    a plain result; None where there is no such file."""
    path = os.path.join(folder, "adapter.py")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        names: dict = {"__name__": "adapter"}
        exec(compile(file.read(), path, "exec"), names)
    return names["adapt"]


def call(function, arguments):
    """What the function gives, as JSON reads it. Its arguments are a copy, from JSON text."""
    return json.loads(json.dumps(function(*json.loads(arguments))))


def same(value, expected, tolerance=0.0):
    """Whether two plain values are equal: true is not 1, and floats may differ in the last digits, or
    by the tolerance."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(expected, (int, float)):
        if not isinstance(value, (int, float)):
            return False
        try:
            off = abs(value - expected)
            return value == expected or off <= max(tolerance, 1e-9 * max(1, abs(expected)))
        except OverflowError:  # a whole number that is too large for a float
            return False
    if isinstance(expected, list):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(map(same, value, expected))
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same(value[key], expected[key]) for key in expected)
        )
    return value == expected


class Trial:
    """The test runner of one task. entry: the function's name; source: as it came, faulty;
    budget: candidates; tried: so far."""

    def __init__(self, folder):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with open(os.path.join(folder, "task.json")) as file:
            task = json.load(file)
        with open(os.path.join(folder, "source.py")) as file:
            self.source = file.read()
        self.entry = task["entry"]
        self.seed = task["seed"]
        self.budget = task["budget"]
        self.tried = 0
        self._adapt = adapter_in(folder)
        self._cases = [
            (json.dumps(arguments), expected, tolerance)
            for arguments, expected, tolerance in task["cases"]
        ]

    def passed(self, source):
        """For each visible case whether the source passes. A time-out fails all later cases too."""
        if self.tried >= self.budget:
            raise OutOfBudget
        self.tried += 1
        return self._run(source)

    def _run(self, source, trace=None):
        results = [False] * len(self._cases)
        # suppressed out here, since it may also ring between two lines of the clock's own
        with suppress(TooSlow), Clock(CANDIDATE_CPU_S):
            try:
                function = define(source, self.entry)
            except Exception:
                return results
            if self._adapt:
                function = partial(self._adapt, self.entry, function)
            for i, (arguments, *expected) in enumerate(self._cases):
                sys.settrace(trace and trace(i))
                try:
                    results[i] = same(call(function, arguments), *expected)
                except Exception:
                    results[i] = False
        sys.settrace(None)
        return results

    def heat(self, source):
        """Line -> how much it looks at fault in [0, 1]: Ochiai's coefficient over the visible cases,
        failing ones that ran it / sqrt(failing · ran it). Counts as no candidate."""
        lines = [set() for _ in self._cases]

        def trace(i):
            def local(frame, event, _):
                lines[i].add(frame.f_lineno)
                return local

            return lambda frame, event, _: (
                local if frame.f_code.co_filename == "candidate.py" else None
            )

        passed = self._run(source, trace)
        failing = sum(not ok for ok in passed)
        heat = {}
        for line in set().union(*lines):
            ran = [not ok for ok, seen in zip(passed, lines, strict=True) if line in seen]
            heat[line] = sum(ran) / max(1.0, failing * len(ran)) ** 0.5
        return heat


def grade(folder):
    """Calls folder/answer.py on the inputs in folder/inputs.json and writes a line of JSON for each
    to stdout: [name, true, value] or [name, false, reason]."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with open(os.path.join(folder, "inputs.json")) as file:
        task = json.load(file)
    with open(os.path.join(folder, "answer.py")) as file:
        source = file.read()
    adapt = adapter_in(folder)
    for name, arguments in task["inputs"].items():
        line = [name, False, "too slow"]
        with suppress(TooSlow), Clock(CASE_CPU_S):
            try:
                function = define(source, task["entry"])
                if adapt:
                    function = partial(adapt, task["entry"], function)
                value = call(function, json.dumps(arguments))
                line = [name, True, value]
            except Exception as error:
                line = [name, False, f"{type(error).__name__}: {error}"[:200]]
        out.write(json.dumps(line) + "\n")
        out.flush()
    out.flush()
    os._exit(0)  # whatever the answer has registered for the end


if __name__ == "__main__":
    grade(sys.argv[1])
