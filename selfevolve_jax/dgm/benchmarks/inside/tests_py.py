"""The trusted side: runs unittest tests, whose solution's modules stand for those of another sandbox.

argv[1] is a JSON file: {"tests": [module, …], "solution": [module, …], "decides": null or [operation,
…]}. decides: by which operations the reference's objects decided assertions (see wire.DECIDES); null
while the reference itself runs, which is how they are found. Writes a line of JSON for each test to the
real standard output, which the tests themselves do not have, and a last one that says it is the end.
"""

import functools
import io
import json
import os
import sys
import types
import unittest
from unittest import mock

import join
import wire

sys.path.insert(0, sys.argv[2])
with open(sys.argv[1]) as file:
    PLAN = json.load(file)
report = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
used = set()

FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinMethodType, functools.partial)
STREAMS = (io.StringIO, io.BytesIO, mock.NonCallableMock)
HIDDEN = (
    "_",
    "gi_",
    "cr_",
    "ag_",
    "f_",
    "tb_",
    "co_",
)  # what leads from an object into the process


def say(line):
    report.write(json.dumps(line) + "\n")
    report.flush()


def own(x):
    return type(x).__module__ in PLAN["tests"]


def may_export(x):
    """Functions, iterators, streams, mocks, and objects of the tests' own classes. No class, module,
    frame or code."""
    if isinstance(x, (type, types.ModuleType)):
        return False
    if isinstance(x, types.BuiltinMethodType) and isinstance(x.__self__, types.ModuleType):
        return x.__self__.__name__ in ("operator", "_operator", "math", "builtins") and (
            x.__name__
            not in ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__")
        )
    iterator = hasattr(type(x), "__next__") and type(x).__module__ in ("builtins", "itertools")
    return isinstance(x, (*FUNCTIONS, *STREAMS)) or iterator or own(x) or type(x) is object


def may_do(operation, x, args):
    """Only to what was exported: a plain string's format() would read whatever it is given."""
    if id(x) not in end.numbers or operation in ("set", "del", "isinstance", "import"):
        return False
    if isinstance(x, (*FUNCTIONS, types.GeneratorType)) and operation == "get":
        return False
    if operation == "get":
        return isinstance(args[0], str) and not args[0].startswith(HIDDEN) and len(args) == 1
    return True


def may_decide(operation):
    if PLAN["decides"] is None:
        used.add(operation)
        return True
    return operation in PLAN["decides"]


end = wire.Wire(join.joined(), may_export, may_do, may_decide)


class Module(types.ModuleType):
    """A module of the solution, imported over there when first looked into."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return end.ask("get", self._remote(), (name,))

    def __setattr__(self, name, value):
        if name.startswith("__"):
            return super().__setattr__(name, value)
        return end.ask("set", self._remote(), (name, value))

    def __delattr__(self, name):
        end.ask("del", self._remote(), (name,))

    def _remote(self):
        known = self.__dict__.get("__remote__")
        if known is None:
            known = end.ask("import", self.__name__)
            self.__dict__["__remote__"] = known
        return known


class Reported(unittest.TestResult):
    def startTest(self, test):
        super().startTest(test)
        self.failed = None

    def addError(self, test, err):
        self.note(test, err)

    def addFailure(self, test, err):
        self.note(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.note(test, err)

    def addSkip(self, test, reason):
        self.failed = f"skipped: {reason}"

    def addExpectedFailure(self, test, err):
        pass

    def addUnexpectedSuccess(self, test):
        self.failed = "passes, and should not"

    def note(self, test, err):
        try:
            text = f"{err[0].__name__}: {err[1]}"
        except Exception:
            text = "an error that cannot be shown"
        self.failed = text[-500:]
        if not isinstance(test, unittest.TestCase):  # setUpClass or setUpModule
            say({"broken": text[-500:]})

    def stopTest(self, test):
        say({"test": test.id(), "passed": self.failed is None, "why": self.failed or ""})
        super().stopTest(test)


for name in PLAN["solution"]:
    sys.modules[name] = Module(name)
try:
    suite = unittest.defaultTestLoader.loadTestsFromNames(PLAN["tests"])
    if unittest.defaultTestLoader.errors:
        say({"broken": str(unittest.defaultTestLoader.errors[0]).strip()[-500:]})
    suite.run(Reported())
except BaseException as e:
    say({"broken": f"{type(e).__name__}: {e}"[-500:]})
say({"end": True, "decides": sorted(used)})
report.close()
os._exit(0)
