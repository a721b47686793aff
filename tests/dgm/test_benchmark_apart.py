"""Tests and solution apart: what is right passes, and no solution decides its own grade."""

import json
from dataclasses import replace

import pytest

from selfevolve_jax.dgm.benchmarks import apart
from selfevolve_jax.dgm.contract import Unavailable
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.dgm.sandbox.job import Job, Limits

pytestmark = pytest.mark.sandbox

SHORT = Limits(wall_s=20, cpu_s=20, memory_mib=512)


@pytest.fixture(scope="module")
def box():
    box = open_box(workers=2)
    yield box
    box.close()


# --- Python ---------------------------------------------------------------------------------------

TESTS = b"""
import unittest
import shelf
from shelf import Shelf, Full, double, evens, keep, count_up

class ShelfTest(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(21), 42)
        self.assertEqual(double([1]), [1, 1])
        self.assertEqual(double((1, {"a": {2}})), (1, {"a": {2}}, 1, {"a": {2}}))

    def test_constant(self):
        self.assertIs(shelf.OPEN, True)

    def test_iterates(self):
        self.assertEqual(list(evens(7)), [0, 2, 4, 6])

    def test_calls_back(self):
        seen = []
        self.assertEqual(keep(lambda x: seen.append(x) or x > 1, [1, 2, 3]), [2, 3])
        self.assertEqual(seen, [1, 2, 3])

    def test_state(self):
        s = Shelf(2)
        s.put("b")
        s.put("a")
        self.assertEqual(s.books, ["b", "a"])
        self.assertEqual(len(s), 2)
        self.assertIn("a", s)
        self.assertEqual(s, Shelf(2, ["b", "a"]))
        self.assertNotEqual(s, Shelf(2))
        s.label = "novels"
        self.assertEqual(s.label, "novels")
        self.assertIsInstance(s, Shelf)

    def test_raises(self):
        with self.assertRaises(Full) as caught:
            Shelf(0).put("a")
        self.assertEqual(type(caught.exception), Full)
        self.assertEqual(caught.exception.args[0], "no room for a")
        with self.assertRaisesRegex(ValueError, "^negative: -1$"):
            Shelf(-1)

    def test_counts(self):
        with self.subTest("first"):
            self.assertEqual(count_up.total(), 3)
"""
NAMES = {
    f"shelf_test.ShelfTest.test_{x}"
    for x in ("double", "constant", "iterates", "calls_back", "state", "raises", "counts")
}
RIGHT = b'''
OPEN = True
class Full(Exception):
    """No room."""
def double(x):
    return x * 2 if not isinstance(x, list) else x + x
def evens(n):
    yield from range(0, n, 2)
def keep(wanted, items):
    return [x for x in items if wanted(x)]
class Shelf:
    def __init__(self, size, books=()):
        if size < 0:
            raise ValueError(f"negative: {size}")
        self.size, self.books = size, list(books)
    def put(self, book):
        if len(self.books) == self.size:
            raise Full(f"no room for {book}")
        self.books.append(book)
    def __len__(self):
        return len(self.books)
    def __contains__(self, book):
        return book in self.books
    def __eq__(self, other):
        return self.books == other.books
class count_up:
    @staticmethod
    def total():
        return 3
'''


def run(box, solution, tests=TESTS, decides=None, **more):
    files = {"shelf.py": solution, **more}
    return apart.python_tests(
        {"shelf_test.py": tests}, ["shelf_test"], files, box, decides, limits=SHORT
    )


def test_a_right_solution_passes_every_test(box):
    graded = run(box, RIGHT)
    assert graded.broken == ""
    assert graded.tests == dict.fromkeys(NAMES, True), graded.why
    assert set(graded.decides) == {"__contains__", "__eq__", "__ne__", "isinstance"}


@pytest.mark.parametrize(
    "wrong, failing",
    [
        (RIGHT.replace(b"x * 2", b"x * 3"), "double"),
        (RIGHT.replace(b"range(0, n, 2)", b"range(0, n, 3)"), "iterates"),
        (RIGHT.replace(b"no room for", b"full of"), "raises"),
        (RIGHT.replace(b"raise Full(", b"raise ValueError("), "raises"),
        (RIGHT.replace(b"return 3", b"return 4"), "counts"),
    ],
)
def test_one_mistake_fails_one_test(box, wrong, failing):
    graded = run(box, wrong)
    assert {n for n, passed in graded.tests.items() if not passed} == {
        f"shelf_test.ShelfTest.test_{failing}"
    }


LINES = "".join(
    json.dumps({"test": name, "passed": True, "why": ""}) + "\n" for name in sorted(NAMES)
) + json.dumps({"end": True, "decides": []})
FORGERIES = {
    "exits 0": "import os; os._exit(0)",
    "raises SystemExit": "raise SystemExit(0)",
    "exits when called": "import os\ndef double(x): os._exit(0)\n"
    + "evens = keep = Shelf = Full = count_up = OPEN = double",
    "prints the report": f"import sys\nprint('''{LINES}''', flush=True)\nprint('OK')\n"
    "print('7 passed in 0.01s')",
    "writes to every descriptor": f"import os\nfor fd in range(1, 64):\n"
    f"    try: os.write(fd, b'''{LINES}\\n''')\n    except OSError: pass\nos._exit(0)",
    "redefines unittest": "import unittest, sys\n"
    "for name in dir(unittest.TestCase):\n"
    "    if name.startswith('assert'): setattr(unittest.TestCase, name, lambda *a, **k: None)\n"
    "unittest.TestResult.addFailure = lambda *a: None\n"
    "unittest.TestResult.wasSuccessful = lambda s: True",
    "adds a conftest and reports": "import pathlib\n"
    "for p in ('conftest.py', 'sitecustomize.py', 'pytest.ini', 'tests/shelf_test.py'):\n"
    "    f = pathlib.Path(p); f.parent.mkdir(exist_ok=True); f.write_text('')\n"
    "pathlib.Path('report.xml').write_text('<testsuite tests=\"7\" failures=\"0\"/>')",
    "walks the interpreter": "import gc, sys, unittest\n"
    "for o in gc.get_objects():\n"
    "    if isinstance(o, unittest.TestResult): o.failures.clear(); o.errors.clear()\n"
    "for m in list(sys.modules.values()):\n"
    "    if hasattr(m, 'say'): m.say = print",
    "talks nonsense on the wire": "import os\nfor fd in range(3, 64):\n"
    "    try: os.write(fd, b'{\"value\": 7}\\n' * 100 + b'[]\\n{\\n')\n    except OSError: pass",
    "asks for what it was not given": "import gc, wire\n"
    "w = next(o for o in gc.get_objects() if isinstance(o, wire.Wire))\n"
    "for n in range(5):\n"
    "    for f in ('get', '__call__', 'import'):\n"
    "        try: print(w.ask(f, wire.Remote(w, n), ('__globals__',)))\n"
    "        except Exception as e: print(e)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_passes_nothing(box, name):
    graded = run(box, FORGERIES[name].encode(), decides=("__eq__", "__ne__", "__contains__"))
    assert not any(graded.tests.values()), graded
    assert set(graded.tests) == NAMES or graded.broken


@pytest.mark.parametrize("name", ["exits 0", "redefines unittest"])
def test_the_forgeries_are_real(box, name):
    """In one process, by its exit code, each of these would be a pass."""
    command = ("sh", "-c", "python3 -m unittest shelf_test")
    files = {"shelf_test.py": TESTS, "shelf.py": FORGERIES[name].encode()}
    if name == "redefines unittest":
        files["shelf.py"] += RIGHT.replace(b"x * 2", b"x * 3")
    assert box.run(Job(command, files, limits=SHORT)).exit_code == 0


def test_an_object_that_is_equal_to_everything_is_equal_to_no_data(box):
    tests = b"""
import unittest
from shelf import f
class T(unittest.TestCase):
    def test_equal(self): self.assertEqual(f(), 42)
    def test_almost(self): self.assertAlmostEqual(f(), 4.2)
    def test_true(self): self.assertTrue(f())
    def test_member(self): self.assertIn(f(), [1, 2])
    def test_contains(self): self.assertIn(1, f())
    def test_greater(self): self.assertGreater(f(), 3)
    def test_listed(self): self.assertEqual([f()], [42])
    def test_keyed(self): self.assertEqual({f(): 1}, {42: 1})
"""
    trick = b"""
class Yes(int):
    def yes(self, *a): return True
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = yes
    def __hash__(self): return hash(42)
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = __round__ = __float__ = __sub__
class No:
    __eq__, __ne__, __lt__, __gt__, __bool__ = [Yes.yes] * 5
    __contains__, __hash__, __sub__ = Yes.yes, Yes.__hash__, Yes.__sub__
def f():
    return %s
"""
    for what in (b"Yes(7)", b"No()"):
        graded = run(box, trick % what, tests, decides=())
        # An int of value 7 is true and greater than 3: that much is so.
        true = {"test_true", "test_greater"} if what == b"Yes(7)" else set()
        passed = {name.split(".")[-1] for name, ok in graded.tests.items() if ok}
        assert passed <= true, (what, graded)


def test_a_context_manager_swallows_no_failed_assertion(box):
    tests = b"""
import unittest
from shelf import Opened
class T(unittest.TestCase):
    def test_fails(self):
        with Opened() as x:
            self.assertEqual(x, 2)
    def test_swallows(self):
        with Opened():
            raise KeyError("as the exercise has it")
"""
    solution = b"""
class Opened:
    def __enter__(self): return 1
    def __exit__(self, *a): return True
"""
    graded = run(box, solution, tests)
    assert graded.tests == {"shelf_test.T.test_fails": False, "shelf_test.T.test_swallows": True}
    assert graded.decides == ("__exit__",)
    strict = run(box, solution, tests, decides=())
    assert not any(strict.tests.values())


def test_to_end_is_not_to_raise(box):
    tests = b"""
import unittest
from shelf import Full, f
class T(unittest.TestCase):
    def test_raises(self):
        with self.assertRaises(Full): f()
"""
    graded = run(box, b"import os\nFull = Exception\ndef f(): os._exit(0)", tests)
    assert graded.tests == {"shelf_test.T.test_raises": False}
    spec = b"""
import { f } from './shelf';
test('throws', () => { expect(() => f()).toThrow(); });
test('rejects', () => expect(f()).rejects.toBeDefined());
"""
    for body in (b"process.exit(0)", b"new Promise(() => setTimeout(() => process.exit(0), 5))"):
        files = {"shelf.js": b"export const f = () => " + body}
        graded = apart.javascript_tests({"s.spec.js": spec}, ["s.spec.js"], files, box, SHORT)
        assert not any(graded.tests.values()), graded


def test_what_is_passed_to_a_solution_leads_no_further(box):
    """A function may be called, an object of the tests' own read; what hangs on them is closed."""
    tests = b"""
import unittest
from shelf import reach
SECRET = "the expected value"
class Toy:
    name = "toy"
    def hello(self): return "hello"
    def stream(self): yield 1
class T(unittest.TestCase):
    def test_reach(self):
        self.assertEqual(reach(Toy(), lambda x: x + 1), ["toy", "hello", 3] + ["closed"] * 8)
"""
    solution = b"""
def reach(toy, f):
    tries = [
        lambda: f.__globals__, lambda: f.__code__, lambda: toy.__class__, lambda: toy.hello.__func__,
        lambda: toy.stream().gi_frame, lambda: setattr(toy, "name", "x"), lambda: toy.hello.im_class,
        lambda: ask("get", "{0.__globals__}", ("format",)),
    ]
    import gc, wire
    end = next(o for o in gc.get_objects() if isinstance(o, wire.Wire))
    # past the courtesies of Remote itself
    def ask(name, x, args): return end.ask(name, x, args)
    tries[0] = lambda: ask("get", f, ("__globals__",))
    tries[1] = lambda: ask("get", f, ("__code__",))
    tries[2] = lambda: ask("get", toy, ("__class__",))
    tries[3] = lambda: ask("get", toy.hello, ("__func__",))
    found = [toy.name, toy.hello(), f(2)]
    for attempt in tries:
        try:
            found.append(repr(attempt()))
        except Exception:
            found.append("closed")
    return found
"""
    graded = run(box, solution, tests)
    assert graded.tests == {"shelf_test.T.test_reach": True}, graded


@pytest.mark.parametrize("first", ["tests", "solution"])
def test_a_solution_that_hangs_is_ended_and_what_passed_before_is_known(box, monkeypatch, first):
    """Whichever of the two clocks runs out first."""

    def run_joined(trusted, untrusted, box):
        jobs = {"tests": trusted, "solution": untrusted}
        jobs[first] = replace(jobs[first], limits=replace(limits, wall_s=4))
        return joined(jobs["tests"], jobs["solution"], box)

    joined = apart._run_joined
    monkeypatch.setattr(apart, "_run_joined", run_joined)
    solution = RIGHT.replace(b"yield from range(0, n, 2)", b"while True: pass\n    yield")
    limits = Limits(wall_s=12, cpu_s=20, memory_mib=512)
    graded = apart.python_tests(
        {"shelf_test.py": TESTS}, ["shelf_test"], {"shelf.py": solution}, box, limits=limits
    )
    assert "wall time" in graded.broken
    assert graded.tests["shelf_test.ShelfTest.test_double"]
    assert "shelf_test.ShelfTest.test_iterates" not in graded.tests


def test_one_slot_is_too_few_and_says_nothing_of_the_solution():
    with (
        open_box(workers=1) as narrow,  # type: ignore[attr-defined]
        pytest.raises(Unavailable, match="two for each worker"),
    ):
        limits = Limits(wall_s=2)
        apart.python_tests({"t.py": b""}, ["t"], {"s.py": b""}, narrow, limits=limits)


# --- JavaScript -----------------------------------------------------------------------------------

SPEC = b"""
import Shelf, { double, evens, keep, Full, later } from './shelf';
import * as whole from './shelf';

describe('shelf', () => {
  let shelf;
  beforeEach(() => { shelf = new Shelf(2); });
  test('double', () => {
    expect(double(21)).toBe(42);
    expect(double([1, undefined, null])).toEqual([1, undefined, null, 1, undefined, null]);
    expect(double('a')).not.toEqual('a');
    expect(whole.double(-0)).toBe(-0);
  });
  xtest('iterates', () => { expect([...evens(7)]).toEqual([0, 2, 4, 6]); });
  xit('calls back', () => {
    const seen = [];
    expect(keep((x) => { seen.push(x); return x > 1; }, [1, 2, 3])).toEqual([2, 3]);
    expect(seen).toEqual([1, 2, 3]);
  });
  describe('with books', () => {
    beforeEach(() => { shelf.put('b'); });
    test('state', () => {
      shelf.put('a');
      expect(shelf.books).toEqual(['b', 'a']);
      expect(shelf.size).toBe(2);
      expect(shelf).toEqual(new Shelf(2, ['b', 'a']));
      expect(shelf).not.toEqual(new Shelf(2, ['a', 'b']));
      expect(shelf).toBeInstanceOf(Shelf);
      shelf.label = 'novels';
      expect(shelf.label).toBe('novels');
    });
    test('raises', () => {
      shelf.put('a');
      expect(() => shelf.put('c')).toThrow(Full);
      expect(() => shelf.put('c')).toThrow(new Error('no room for c'));
      expect(() => shelf.put('c')).toThrow(/room/);
      expect(() => new Shelf(-1)).toThrow(RangeError);
    });
  });
  test('promises', async () => {
    expect(later(1)).toBeInstanceOf(Promise);
    await expect(later(1)).resolves.toBe(2);
    await expect(later(-1)).rejects.toThrow('negative');
  });
  test.skip('never runs', () => { throw new Error(); });
});
"""
JS_NAMES = {
    *("shelf > double", "shelf > iterates", "shelf > calls back", "shelf > promises"),
    *("shelf > with books > state", "shelf > with books > raises"),
}
JS_RIGHT = b"""
export const double = (x) => (Array.isArray(x) ? [...x, ...x] : typeof x === 'string' ? x + x : x * 2);
export function* evens(n) { for (let i = 0; i < n; i += 2) yield i; }
export const keep = (wanted, items) => items.filter((x) => wanted(x));
export class Full extends Error {}
export const later = (x) => new Promise((resolve, reject) => setTimeout(
  () => (x < 0 ? reject(new Error('negative')) : resolve(x + 1)), 5));
export default class Shelf {
  constructor(size, books = []) {
    if (size < 0) throw new RangeError('negative');
    this.room = size;
    this.books = [...books];
  }
  get size() { return this.books.length; }
  put(book) {
    if (this.books.length === this.room) throw new Full(`no room for ${book}`);
    this.books.push(book);
  }
}
"""


def run_js(box, solution):
    files = {"shelf.js": solution}
    return apart.javascript_tests({"shelf.spec.js": SPEC}, ["shelf.spec.js"], files, box, SHORT)


def test_javascript_a_right_solution_passes_every_test(box):
    graded = run_js(box, JS_RIGHT)
    assert graded.broken == ""
    assert graded.tests == dict.fromkeys(JS_NAMES, True), graded.why


@pytest.mark.parametrize(
    "wrong, failing",
    [
        (JS_RIGHT.replace(b"x * 2", b"x * 3"), "double"),
        (JS_RIGHT.replace(b"i += 2", b"i += 3"), "iterates"),
        (JS_RIGHT.replace(b"no room", b"full"), "with books > raises"),
        (JS_RIGHT.replace(b"resolve(x + 1)", b"resolve(x)"), "promises"),
        (JS_RIGHT.replace(b"items.filter((x) => wanted(x))", b"[2, 3]"), "calls back"),
    ],
)
def test_javascript_one_mistake_fails_one_test(box, wrong, failing):
    graded = run_js(box, wrong)
    assert {n for n, passed in graded.tests.items() if not passed} == {f"shelf > {failing}"}


JS_LINES = "".join(
    json.dumps({"test": name, "passed": True, "why": ""}) + "\n" for name in sorted(JS_NAMES)
) + json.dumps({"end": True})
JS_NOTHING = "export const double = () => 0, evens = double, keep = double, Full = Error,"
JS_NOTHING += " later = double; export default double;\n"
JS_FORGERIES = {
    "exits 0": "process.exit(0);",
    "exits when called": "export default class { constructor() { process.exit(0); } }\n"
    "export const double = () => process.exit(0), evens = double, keep = double, later = double;\n"
    "export class Full {}",
    "prints the report": f"import fs from 'node:fs';\nfs.writeSync(1, `{JS_LINES}\\n`);\n"
    "console.log('Tests: 6 passed, 6 total');\n" + JS_NOTHING,
    "writes to every descriptor": "import fs from 'node:fs';\n"
    f"for (let fd = 1; fd < 64; fd++) try {{ fs.writeSync(fd, `{JS_LINES}\\n`); }} catch {{}}\n"
    + JS_NOTHING,
    "redefines the runner": "globalThis.test = globalThis.it = globalThis.describe = () => {};\n"
    "globalThis.expect = () => new Proxy({}, { get: () => () => {} });\n"
    "Object.is = () => true; Array.prototype.every = () => true;\n"
    "JSON.stringify = () => '{\"value\":1}';\n" + JS_NOTHING,
    "pollutes prototypes": "Object.prototype.asymmetricMatch = () => true;\n"
    "Object.prototype.passed = true; Object.prototype.toJSON = () => ({ value: 42 });\n"
    + JS_NOTHING,
    "matches everything": "const yes = { asymmetricMatch: () => true, equals: () => true,\n"
    "  then: undefined, valueOf: () => 42, [Symbol.toPrimitive]: () => 42 };\n"
    "const f = () => yes;\n"
    "export { f as double, f as evens, f as keep, f as later, f as default, f as Full };",
    "adds config": "import fs from 'node:fs';\n"
    "for (const f of ['jest.config.js', 'package.json', 'shelf.spec.js', 'junit.xml'])\n"
    "  fs.writeFileSync(f, '{}');\n" + JS_NOTHING,
}


@pytest.mark.parametrize("name", JS_FORGERIES)
def test_javascript_a_forgery_passes_nothing(box, name):
    graded = run_js(box, JS_FORGERIES[name].encode())
    assert not any(graded.tests.values()), graded
    assert set(graded.tests) == JS_NAMES or graded.broken


def test_javascript_a_program_that_the_tests_start_runs_with_the_solution(box):
    spec = b"""
const { spawnSync } = require('child_process');
const { resolve } = require('path');
test('says it', () => {
  const ran = spawnSync('node', [resolve(__dirname, 'say.js'), 'x'], { stdio: 'pipe' });
  expect(ran.stdout.toString()).toBe('x data\\n');
});
"""
    said = (
        b"const fs = require('fs'); console.log(process.argv[2], fs.readFileSync('d.txt', 'utf8'));"
    )
    files = {"say.js": said, "d.txt": b"data"}
    graded = apart.javascript_tests({"say.spec.js": spec}, ["say.spec.js"], files, box, SHORT)
    assert graded.tests == {"says it": True}, graded
