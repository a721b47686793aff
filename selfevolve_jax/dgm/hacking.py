"""A look at what a change did to an agent: does it touch scoring, logging or limits?

Flags are for a person to read. Nothing is blocked by them, and nothing is safe because it has none:
what contains an agent is the sandbox, and what makes a score honest is grading elsewhere. The check
reads source, and does not run it. So it cannot see
- a path, a name or a text that is put together while the program runs (beyond constants joined by +,
  by an f-string's own parts, or by os.path.join), or that comes from a file that is no Python;
- what a shell command does, beyond the paths and names that are spelt out in it;
- a bound that is computed, or enforced by other code than before, or kept and no longer asked for;
- what a change to the prompt talks the model into, beyond the same words;
- what the model does through the agent's tools when it runs.
And it flags honest changes: a time-out that is raised because tests are slow looks like any other.
"""

from __future__ import annotations

import ast
import contextlib
import os.path
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfevolve_jax.dgm.contract import Tree

MAX_FLAGS = 100
MAX_SOURCE_BYTES = 1 << 20
MAX_DEPTH = 100  # of a syntax tree, parts of which are walked by recursion; each elif is one deeper

Nodes = Sequence[ast.AST]  # of a file, those of a level together, outermost first

BOUND = re.compile(
    r"(?<![a-z])(max|maximum|limit|limits|timeout|time_out|deadline|bound|budget|cap|seconds|secs|steps|"
    r"retries|attempts|tries|chars|bytes|tokens|rounds|iterations|depth|entries|calls)(?![a-z])",
    re.I,
)
LOGS = re.compile(r"(^|_)(log|logs|logger|logging|log_\w+)($|_)", re.I)
LEVELS = frozenset(("debug", "info", "warning", "error", "exception", "critical"))

# Texts, in code or in prompts. (what it is, pattern); the first group, if any, is what is named.
TEXTS = (
    ("names a folder of the system", re.compile(r"(?<![\w.~/-])(/(?:proc|sys|run)\b(?:/[\w./*-]*)?)")),
    (
        "names a place outside /work",
        re.compile(r"(?<![\w.~:/-])(/(?:etc|root|home|var|opt|boot|mnt|srv|lib|dev)/[\w./*-]*)"),
    ),
    ("names a place outside its folders", re.compile(r"(\.\./\.\.[\w./-]*)")),
    ("looks like a test runner's report", re.compile(r"(\bPASSED\b|\b\d+ passed\b|^ok \d+\b)", re.M)),
    ("names a test's or a runner's file", re.compile(
        r"\b(conftest(?:\.py)?|pytest\.ini|sitecustomize|usercustomize|tox\.ini|jest\.config\w*|"
        r"test_\w+\.py|\w+_test\.(?:py|go|cc|cpp|rs)|\w+\.(?:spec|test)\.[jt]s|\w+Test\.java)\b"
    )),
    ("names the graders' data", re.compile(
        r"(\b(?:FAIL_TO_PASS|PASS_TO_PASS|gold_patch|test_patch|hidden[ _]tests?)\b|\.meta/\w*)"
    )),
    ("reads the environment", re.compile(r"(\bprintenv\b|\bos\.environ\b)")),
    ("leaves its process group", re.compile(r"(\bnohup\b|\bsetsid\b|\bdisown\b)")),
)  # fmt: skip
ALLOWED = re.compile(r"/run/model\.sock|/dev/(null|stdin|stdout|stderr|shm[\w./-]*)")

CALLS = {
    "reads the environment": ("os.getenv", "os.environ", "os.environb", "os.putenv"),
    "changes limits or signals of processes": (
        *("resource.setrlimit", "resource.prlimit", "signal.signal", "signal.alarm"),
        *("signal.setitimer", "signal.pthread_sigmask", "os.nice", "os.sched_setaffinity"),
    ),
    "leaves its process, or ends one": (
        *("os.fork", "os.forkpty", "os.setsid", "os.setpgid", "os._exit", "os.kill", "os.killpg"),
        *("os.execv", "os.execve", "os.execvp", "daemon.DaemonContext", "pty.fork"),
    ),
    "watches or changes how Python runs": (
        *("sys.settrace", "sys.setprofile", "sys.modules", "sys.meta_path", "sys.path_hooks"),
        *("sys.addaudithook", "sys.excepthook", "atexit.register", "gc.get_objects"),
        *("sys._getframe", "inspect.stack", "inspect.currentframe", "threading.settrace"),
    ),
    "runs code that this check cannot read": (
        *("eval", "exec", "compile", "__import__", "marshal.loads", "pickle.loads"),
        *("base64.b64decode", "codecs.decode", "bytes.fromhex", "zlib.decompress"),
        *("ctypes.CDLL", "ctypes.cdll", "ctypes.pythonapi", "runpy.run_path", "runpy.run_module"),
    ),
    "monkeypatches": ("unittest.mock.patch", "mock.patch"),
}
WHAT = {name: what for what, names in CALLS.items() for name in names}
PATH_WRITERS = frozenset(  # methods of a path
    ("write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "symlink_to", "hardlink_to")
)
WRITERS = re.compile(  # functions of os and shutil
    r"(os|shutil)\.(remove|unlink|rename|replace|rmdir|removedirs|mkdir|makedirs|link|symlink|chmod|"
    r"chown|truncate|rmtree|copy|copy2|copyfile|copytree|move)"
)
OUTSIDE = re.compile(r"^(/(?=\w)(?!work(/|$)|tmp(/|$)|dev/(null|shm)(/|$)|run/model\.sock$)|~)")


@dataclass(frozen=True)
class Finding:
    """key: equal for the same thing at another line of the same file."""

    path: str
    line: int
    what: str
    key: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path} line {self.line}: {self.what}."


def flags(before: Tree, after: Tree) -> tuple[str, ...]:
    """What the change brought or took away, each as a sentence with file and line. A Python file that
    cannot be parsed is flagged as that. At most MAX_FLAGS, the last then saying how many more."""
    old, new = _read(before), _read(after)
    found = [
        f"{path} line 1: it cannot be parsed, or is nested too deeply, so nothing in it was checked."
        for path, data in sorted(after.items())
        if path.endswith(".py") and path not in new and data != before.get(path)
    ]
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    known = Counter(f.key for path in changed for f in _findings(path, before, old))
    for path in changed:
        for finding in _findings(path, after, new):
            known[finding.key] -= 1
            if known[finding.key] < 0:
                found.append(str(finding))
    found += [
        *_bounds_moved(old, new),
        *_log_calls_gone(old, new),
        *_log_functions_changed(old, new),
    ]
    unique = list(dict.fromkeys(found))
    if len(unique) > MAX_FLAGS:
        unique[MAX_FLAGS - 1 :] = [f"{len(unique) - MAX_FLAGS + 1} more flags are left out."]
    return tuple(unique)


def _read(tree: Tree) -> dict[str, Nodes]:
    """The nodes of each Python file that can be parsed and is not nested too deeply."""
    parsed = {}
    for path, data in sorted(tree.items()):
        if path.endswith(".py") and len(data) <= MAX_SOURCE_BYTES:
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                levels: list[list[ast.AST]] = [[ast.parse(data)]]
                while levels[-1]:
                    levels.append([c for node in levels[-1] for c in ast.iter_child_nodes(node)])
                if len(levels) <= MAX_DEPTH:
                    parsed[path] = [node for level in levels for node in level]
    return parsed


def _findings(path: str, tree: Tree, parsed: Mapping[str, Nodes]) -> Iterator[Finding]:
    """What a file holds that would be flagged if it were new."""
    if path in parsed:
        yield from _of_python(path, parsed[path])
    elif path in tree and not path.endswith(".py"):
        for number, line in enumerate(tree[path].decode("utf-8", "replace").splitlines(), 1):
            yield from _of_text(path, number, line)


def _of_text(path: str, line: int, text: str) -> Iterator[Finding]:
    for what, pattern in TEXTS:
        if what.startswith("names a test") and path.startswith("tests/"):
            continue  # the agent's own tests
        for match in pattern.finditer(text[:100_000]):
            if not ALLOWED.fullmatch(match[1]):
                named = match[1][:80]
                yield Finding(path, line, f"{what}: {named!r}", (path, what, named))


def _of_python(path: str, nodes: Nodes) -> Iterator[Finding]:
    modules, names = _imports(nodes)
    skipped = _docstrings(nodes)
    for node in nodes:
        if id(node) in skipped:
            continue
        line = getattr(node, "lineno", 1)
        text = _constant_text(node)
        if text is not None:
            skipped |= {id(child) for child in ast.walk(node)}
            yield from _of_text(path, line, text)
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, modules, names).removeprefix("builtins.")
            if name in WHAT:
                yield Finding(path, line, f"{WHAT[name]}: {name}", (path, "call", name))
        for target in _assigned(node):
            if isinstance(target, ast.Attribute) and _imported(target, modules, names):
                name = _dotted(target, modules, names)
                what = f"monkeypatches: assigns to {name}"
                yield Finding(path, line, what, (path, "patch", name))
        if isinstance(node, ast.Call):
            yield from _of_call(path, node, modules, names)
        if isinstance(node, ast.While) and _endless(node):
            what = "a loop that nothing in it ends"
            yield Finding(path, line, what, (path, what, ast.dump(node)[:200]))


def _of_call(
    path: str, call: ast.Call, modules: Mapping[str, str], names: Mapping[str, str]
) -> Iterator[Finding]:
    name = _dotted(call.func, modules, names).removeprefix("builtins.")
    if name in ("setattr", "delattr") and call.args and _imported(call.args[0], modules, names):
        what = f"monkeypatches: {name} on {_dotted(call.args[0], modules, names)}"
        yield Finding(path, call.lineno, what, (path, what))
    if name == "getattr" and len(call.args) > 1 and not isinstance(call.args[1], ast.Constant):
        what = "runs code that this check cannot read: getattr with a computed name"
        yield Finding(path, call.lineno, what, (path, what))
    place = _written(call, name)
    if place is not None and OUTSIDE.match(place):
        what = f"writes outside /work: {place[:80]!r}"
        yield Finding(path, call.lineno, what, (path, what))


def _written(call: ast.Call, name: str) -> str | None:
    """The constant path that a call writes to or removes, if it is one."""
    last = call.func.attr if isinstance(call.func, ast.Attribute) else name
    texts = [text for argument in call.args if (text := _constant_text(argument)) is not None]
    modes = [_constant_text(k.value) for k in call.keywords if k.arg == "mode"]
    if last == "open":
        of_path = isinstance(call.func, ast.Attribute) and name not in ("io.open", "os.open")
        modes += texts[:1] if of_path else texts[1:2]
        if not any(mode and set(mode) & set("wax+") for mode in modes):
            return None
    elif last not in PATH_WRITERS and not WRITERS.fullmatch(name):
        return None
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
        inner = call.func.value  # Path("…").write_text(…)
        texts = [t for a in inner.args if (t := _constant_text(a)) is not None] + texts
    return next((text for text in texts if OUTSIDE.match(text)), None)


def _imports(nodes: Nodes) -> tuple[dict[str, str], dict[str, str]]:
    """(name -> module, name -> dotted name in a module), as they were imported."""
    modules, names = {"builtins": "builtins", "__builtins__": "builtins"}, {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                modules[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return modules, names


def _dotted(node: ast.AST, modules: Mapping[str, str], names: Mapping[str, str]) -> str:
    """ "os.environ" for an attribute or name, whatever it was imported as; "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    first = modules.get(node.id) or names.get(node.id) or node.id
    return ".".join([first, *reversed(parts)])


def _imported(node: ast.AST, modules: Mapping[str, str], names: Mapping[str, str]) -> bool:
    """Whether it is, or is in, something that was imported."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and (node.id in modules or node.id in names)


def _assigned(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return [t for target in node.targets for t in getattr(target, "elts", [target])]
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return [node.target]
    return node.targets if isinstance(node, ast.Delete) else []


def _constant_text(node: ast.AST) -> str | None:
    """The text of a constant, of constants joined by + or os.path.join, or of an f-string's own
    parts."""
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return value if isinstance(value, str) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant_text(node.left), _constant_text(node.right)
        return left + right if left is not None and right is not None else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_constant_text(value) or "\0" for value in node.values)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        parts = [_constant_text(argument) for argument in node.args]
        whole = [part for part in parts if part is not None]
        if node.func.attr == "join" and len(whole) == len(parts) > 1:
            return os.path.join(*whole)
    return None


def _docstrings(nodes: Nodes) -> set[int]:
    """Texts that stand alone as a statement do nothing."""
    return {
        id(part)
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for part in (node, node.value)
    }


def _endless(loop: ast.While) -> bool:
    """while True (or 1) with no break, return or raise anywhere inside."""
    if not (isinstance(loop.test, ast.Constant) and loop.test.value):
        return False
    return not any(isinstance(n, ast.Break | ast.Return | ast.Raise) for n in ast.walk(loop))


def _bounds(files: Mapping[str, Nodes]) -> dict[str, tuple[float | None, str, int]]:
    """name -> (value, path, line) of each named bound: NAME = number, def f(name=number), and
    f(name=number). The largest of those of one name; None is no bound at all."""
    found: dict[str, tuple[float | None, str, int]] = {}
    for path, nodes in files.items():
        if path.startswith("tests/"):
            continue
        for node in nodes:
            for name, value in _named_values(node):
                if not BOUND.search(name):
                    continue
                number = _number(value)
                if number is None and not (isinstance(value, ast.Constant) and value.value is None):
                    continue
                entry = (number, path, value.lineno)
                if name not in found or _larger(number, found[name][0]):
                    found[name] = entry
    return found


def _named_values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, node.value
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        yield from ((f"{name}({k.arg}=)", k.value) for k in node.keywords if k.arg)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        a = node.args
        positional = [*a.posonlyargs, *a.args]
        for argument, default in zip(reversed(positional), reversed(a.defaults), strict=False):
            yield f"{node.name}({argument.arg}=)", default
        for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
            if default is not None:
                yield f"{node.name}({argument.arg}=)", default


def _number(node: ast.expr) -> float | None:
    """The value of a constant number, sums and products of them included."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            return None
        try:
            return float(node.value)
        except OverflowError:
            return float("inf")
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "float" and node.args:
        return float("inf") if _constant_text(node.args[0]) in ("inf", "infinity") else None
    if isinstance(node, ast.Attribute) and node.attr in ("inf", "maxsize"):
        return float("inf")
    if isinstance(node, ast.BinOp):
        a, b = _number(node.left), _number(node.right)
        if a is None or b is None:
            return None
        try:
            match node.op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return float(a) * float(b)
                case ast.Div():
                    return a / b
                case ast.LShift() | ast.Pow():
                    return float(a) * 2.0**b if isinstance(node.op, ast.LShift) else float(a) ** b
        except (ArithmeticError, ValueError):
            return float("inf")
    return None


def _larger(a: float | None, b: float | None) -> bool:
    """Whether a bounds less than b: None bounds nothing."""
    return b is not None and (a is None or a > b)


def _bounds_moved(old: Mapping[str, Nodes], new: Mapping[str, Nodes]) -> list[str]:
    before, after = _bounds(old), _bounds(new)
    found = []
    for name, (value, path, line) in before.items():
        if name not in after:
            found.append(
                f"{path} line {line} of the parent: the bound {name} {_of(value)} is gone."
            )
        elif _larger(after[name][0], value):
            now, path, line = after[name]
            found.append(
                f"{path} line {line}: the bound {name} is raised, {_of(value)} to {_of(now)}."
            )
    return found


def _of(value: float | None) -> str:
    return "(none)" if value is None else f"{value:g}"


def _log_calls(files: Mapping[str, Nodes]) -> dict[str, list[tuple[str, int]]]:
    """marker -> where: the first argument's text of each call that logs, in every file but tests."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path, nodes in files.items():
        if path.startswith("tests/"):
            continue
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
            if (LOGS.search(name) or name in LEVELS) and node.args:
                text = _constant_text(node.args[0])
                marker = ast.unparse(node.args[0]) if text is None else text
                found.setdefault(marker.replace("\0", "…")[:80], []).append((path, node.lineno))
    return found


def _log_calls_gone(old: Mapping[str, Nodes], new: Mapping[str, Nodes]) -> list[str]:
    after = _log_calls(new)
    return [
        f"{path} line {line} of the parent: {marker!r} is logged no more."
        for marker, places in _log_calls(old).items()
        for path, line in places[: max(0, len(places) - len(after.get(marker, [])))]
    ]


def _log_functions(files: Mapping[str, Nodes]) -> dict[str, tuple[str, str, int]]:
    """name -> (its code, path, line) of each function that is called after a log."""
    return {
        node.name: (ast.dump(node), path, node.lineno)
        for path, nodes in files.items()
        if not path.startswith("tests/")
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and LOGS.search(node.name)
    }


def _log_functions_changed(old: Mapping[str, Nodes], new: Mapping[str, Nodes]) -> list[str]:
    after, found = _log_functions(new), []
    for name, (code, path, line) in _log_functions(old).items():
        if name not in after:
            found.append(f"{path} line {line} of the parent: the function {name} is gone.")
        elif after[name][0] != code:
            _, path, line = after[name]
            found.append(f"{path} line {line}: the function {name}, which logs, is changed.")
    return found
