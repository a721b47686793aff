"""Aider's layout with exercises of our own, in real sandboxes: references pass, stubs do not, nor does
a solution that ends the program, prints the report or redefines what tests assert with."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from selfevolve_jax.dgm.benchmarks import polyglot, toolchains
from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig, open_benchmark
from selfevolve_jax.dgm.contract import Task
from selfevolve_jax.dgm.first_agent import ENTRY_POINT
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.errors import UserError

sandbox = pytest.mark.sandbox

# As much of Catch as the grader asks of it: TEST_CASE, REQUIRE, and a report in XML.
CATCH = """
#pragma once
#include <fstream>
#include <functional>
#include <string>
#include <vector>
struct Case { std::string name; std::function<void()> run; };
inline std::vector<Case>& cases() { static std::vector<Case> all; return all; }
struct Added { Added(const char* n, void (*f)()) { cases().push_back({n, f}); } };
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define TEST_CASE(name) static void JOIN(f, __LINE__)(); \\
  static Added JOIN(a, __LINE__)(name, JOIN(f, __LINE__)); static void JOIN(f, __LINE__)()
#define REQUIRE(x) do { if (!(x)) throw 1; } while (0)
"""
CATCH_MAIN = """
#include "catch.hpp"
int main(int argc, char** argv) {
  std::ofstream out(argv[argc - 1]);
  out << "<Catch>";
  for (auto& c : cases()) {
    bool ok = true;
    try { c.run(); } catch (...) { ok = false; }
    out << "<TestCase name=\\"" << c.name << "\\"><OverallResult success=\\""
        << (ok ? "true" : "false") << "\\"/></TestCase>";
  }
  out << "</Catch>";
}
"""
# language -> (solution, tests, reference, stub, further files)
EXERCISES = {
    "python": (
        ["leap.py"],
        {
            "leap_test.py": "import unittest\nfrom leap import leap\n"
            "class LeapTest(unittest.TestCase):\n"
            "    def test_four(self): self.assertIs(leap(1996), True)\n"
            "    def test_hundred(self): self.assertIs(leap(1900), False)\n"
        },
        "def leap(y):\n    return y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)\n",
        "def leap(y):\n    pass\n",
        {},
    ),
    "javascript": (
        ["leap.js"],
        {
            "leap.spec.js": "import { leap } from './leap';\n"
            "test('four', () => { expect(leap(1996)).toBe(true); });\n"
            "xtest('hundred', () => { expect(leap(1900)).toBe(false); });\n"
        },
        "export const leap = (y) => y % 4 === 0 && (y % 100 !== 0 || y % 400 === 0);\n",
        "export const leap = (y) => { throw new Error('to do'); };\n",
        {"package.json": "{}"},
    ),
    "cpp": (
        ["leap.cpp", "leap.h"],
        {
            "leap_test.cpp": '#include "leap.h"\n#include "test/catch.hpp"\n'
            'TEST_CASE("four") { REQUIRE(leap(1996)); }\n'
            '#if defined(EXERCISM_RUN_ALL_TESTS)\nTEST_CASE("hundred") { REQUIRE(!leap(1900)); }\n'
            "#endif\n"
        },
        '#include "leap.h"\nbool leap(int y) { return y % 4 == 0 && (y % 100 || y % 400 == 0); }\n',
        "",
        {"test/catch.hpp": CATCH, "test/tests-main.cpp": CATCH_MAIN, "CMakeLists.txt": "x"},
    ),
    "rust": (
        ["src/lib.rs", "Cargo.toml"],
        {
            "tests/leap.rs": "use leap::*;\n#[test]\nfn four() { assert_eq!(leap(1996), true); }\n"
            "#[test]\n#[ignore]\nfn hundred() { assert_eq!(leap(1900), false); }\n"
        },
        "pub fn leap(y: u32) -> bool { y % 4 == 0 && (y % 100 != 0 || y % 400 == 0) }\n",
        'pub fn leap(y: u32) -> bool { todo!("{y}") }\n',
        {"Cargo.toml": '[package]\nname = "leap"\nversion = "1.0.0"\nedition = "2021"\n'},
    ),
    "go": (
        ["leap.go"],
        {
            "leap_test.go": 'package leap\nimport "testing"\n'
            "func TestFour(t *testing.T) { if !Leap(1996) { t.Fatal() } }\n"
            "func TestHundred(t *testing.T) { if Leap(1900) { t.Fatal() } }\n"
        },
        "package leap\nfunc Leap(y int) bool { return y%4 == 0 && (y%100 != 0 || y%400 == 0) }\n",
        'package leap\nfunc Leap(y int) bool { panic("to do") }\n',
        {"go.mod": "module leap\ngo 1.18\n"},
    ),
    "java": (
        ["src/main/java/Leap.java"],
        {
            "src/test/java/LeapTest.java": "import org.junit.jupiter.api.*;\n"
            "import static org.junit.jupiter.api.Assertions.*;\nclass LeapTest {\n"
            "  @Test void four() { assertTrue(Leap.leap(1996)); }\n"
            '  @Disabled("later") @Test void hundred() { assertFalse(Leap.leap(1900)); }\n}\n'
        },
        "class Leap { static boolean leap(int y) "
        "{ return y % 4 == 0 && (y % 100 != 0 || y % 400 == 0); } }\n",
        "class Leap { static boolean leap(int y) { throw new RuntimeException(); } }\n",
        {},
    ),
}
EXAMPLES = {"cpp": "example.cpp", "java": "src/reference/java/Leap.java"}


def write_exercise(root: Path, language: str, name: str = "leap") -> Path:
    solution, tests, reference, stub, more = EXERCISES[language]
    folder = root / language / polyglot.PRACTICE / name
    example = f".meta/{EXAMPLES.get(language, 'example.' + language)}"
    files = {solution[0]: stub, example: reference, **tests, **more}
    if language == "cpp":
        files["leap.h"] = "#pragma once\nbool leap(int y);\n"
    files[".docs/instructions.md"] = "Say whether a year is a leap year."
    files[".approaches/secret.md"] = reference
    config = {"files": {"solution": solution, "test": list(tests), "example": [example]}}
    files[".meta/config.json"] = json.dumps(config)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module")
def box():
    box = open_box(workers=2)
    yield box
    box.close()


@pytest.fixture(scope="module")
def jars(tmp_path_factory):
    """JUnit's jars as Maven keeps them here, of one version; None where it has none."""
    home = Path("~/.m2/repository/org").expanduser()
    found = []
    for pattern in (
        *("junit/jupiter/*/5.13.4/*.jar", "junit/platform/*/1.13.4/*.jar"),
        *("opentest4j/opentest4j/1.3.0/*.jar", "apiguardian/apiguardian-api/1.1.2/*.jar"),
    ):
        found += home.glob(pattern)
    folder = tmp_path_factory.mktemp("jars")
    folder.chmod(0o755)  # the sandbox's user is another
    for jar in found:
        shutil.copy(jar, folder)
    return str(folder) if len(found) >= 8 else None


def opened(tmp_path, language, jars=None):
    if language == "java" and jars is None:
        pytest.skip("no JUnit in ~/.m2")
    found = toolchains.find(language, jars)
    if isinstance(found, str):
        pytest.skip(found)
    write_exercise(tmp_path / "exercises", language)
    return polyglot.open_polyglot(
        str(tmp_path / "exercises"), tmp_path / "cache", [language], java_jars=jars
    )


def names(language, expected):
    ends = {
        "python": {"leap_test.LeapTest.test_four", "leap_test.LeapTest.test_hundred"},
        "java": {"LeapTest.four()", "LeapTest.hundred()"},
        "go": {"TestFour", "TestHundred"},
    }
    return set(expected.tests) == ends.get(language, {"four", "hundred"})


@sandbox
@pytest.mark.parametrize("language", toolchains.LANGUAGES)
def test_the_reference_passes_and_a_stub_and_a_mistake_do_not(tmp_path, language, box, jars):
    found = opened(tmp_path, language, jars)
    e = found.exercises[f"{language}-leap"]
    expected = found.expected(e, box)
    assert expected.refused == "" and names(language, expected), expected
    path = e.solution[0]
    wrong = {path: EXERCISES[language][2].replace("100", "99").encode()}
    graded = found.grade(e, {**e.stubs, **wrong}, box, expected)
    assert polyglot.verdict(graded, expected, language)[:2] == (False, 0.5), graded
    # the cache: known without a box
    again = dataclasses.replace(found, _known={})
    assert again.expected(e, NoBox()) == expected


class NoBox:
    name = "bubblewrap"


FORGERIES = {
    "python": {"exits": "import os; os._exit(0)"},
    "javascript": {"exits": "process.exit(0);"},
    "cpp": {
        "ends the program": '#include "leap.h"\n#include <cstdlib>\n'
        "bool leap(int) { std::_Exit(0); }\n",
        "writes the report": '#include "leap.h"\n#include <cstdlib>\n#include <fstream>\n'
        'struct S { S() { { std::ofstream o("report.out"); o << "<Catch>'
        "<TestCase name='four'><OverallResult success='true'/></TestCase>"
        "<TestCase name='hundred'><OverallResult success='true'/></TestCase></Catch>\"; }"
        " std::_Exit(0); } } s;\nbool leap(int) { return false; }\n",
    },
    "rust": {
        "ends the program": "pub fn leap(_: u32) -> bool { std::process::exit(0) }\n",
        "prints the report": "pub fn leap(_: u32) -> bool {\n"
        '    for t in ["four", "hundred"] {\n'
        '        println!("{{\\"type\\":\\"test\\",\\"event\\":\\"ok\\",\\"name\\":\\"{t}\\"}}");\n'
        "        use std::io::Write;\n"
        '        let line = "{\\"type\\":\\"test\\",\\"event\\":\\"ok\\",\\"name\\":\\"T\\"}\\n";\n'
        '        let line = line.replace("\\"T\\"", &format!("\\"{t}\\""));\n'
        "        std::io::stdout().write_all(line.as_bytes()).unwrap();\n"
        "    }\n    std::process::exit(0)\n}\n",
        "redefines the assertion": "pub fn leap(_: u32) -> bool { true }\n"
        "#[macro_export]\nmacro_rules! assert_eq { ($($x:tt)*) => {{ let _ = ($($x)*); }} }\n",
    },
    "go": {
        "ends the program": 'package leap\nimport "os"\nfunc init() { os.Exit(0) }\n'
        "func Leap(y int) bool { return true }\n",
        "prints the report": 'package leap\nimport ("fmt"; "os")\nfunc init() {\n'
        '  fmt.Print("=== RUN   TestFour\\n--- PASS: TestFour (0.00s)\\n")\n'
        '  fmt.Print("=== RUN   TestHundred\\n--- PASS: TestHundred (0.00s)\\nPASS\\n")\n'
        "  os.Exit(0)\n}\nfunc Leap(y int) bool { return true }\n",
    },
    "java": {
        "ends the program": "class Leap { static boolean leap(int y) "
        "{ Runtime.getRuntime().halt(0); return true; } }\n",
        "writes the report": "import java.nio.file.*;\nclass Leap {\n"
        " static boolean leap(int y) { try {\n"
        '  String s = "";\n'
        '  for (String t : new String[] {"four", "hundred"})\n'
        '    s += "{\\"test\\": \\"LeapTest." + t + "()\\", \\"passed\\": true}\\n";\n'
        '  Files.writeString(Path.of("report.out"), s);\n'
        "  Runtime.getRuntime().halt(0); } catch (Exception e) {} return true; } }\n",
    },
}


@sandbox
@pytest.mark.parametrize(
    "language, name", [(language, name) for language, all_ in FORGERIES.items() for name in all_]
)
def test_a_forgery_is_not_solved(tmp_path, language, name, box, jars):
    found = opened(tmp_path, language, jars)
    e = found.exercises[f"{language}-leap"]
    expected = found.expected(e, box)
    forged = {**e.stubs, e.solution[0]: FORGERIES[language][name].encode()}
    graded = found.grade(e, forged, box, expected)
    solved, _, reason = polyglot.verdict(graded, expected, language)
    assert not solved and polyglot.METHODS[language] in reason, graded


@sandbox
def test_a_header_that_redefines_the_assertion_is_not_solved(tmp_path, box):
    found = opened(tmp_path, "cpp")
    e = found.exercises["cpp-leap"]
    header = (
        b'#pragma once\n#include "test/catch.hpp"\n#undef REQUIRE\n#define REQUIRE(x) (void)(x)\n'
    )
    forged = {
        "leap.h": header + b"inline bool leap(int) { return true; }\n",
        "leap.cpp": b"",
    }
    graded = found.grade(e, forged, box, found.expected(e, box))
    assert "control" in graded.broken, graded


WRITES = """
import pathlib, sys
repo = pathlib.Path(sys.argv[sys.argv.index("--repo") + 1])
seen = sorted(str(p.relative_to(repo)) for p in repo.rglob("*") if p.is_file())
for path, text in {files!r}.items():
    (repo / path).parent.mkdir(parents=True, exist_ok=True)
    (repo / path).write_text(text)
print(seen)
"""


def agent(**files):
    return {ENTRY_POINT: WRITES.format(files=files).encode()}


@sandbox
def test_an_agent_is_run_and_only_its_solution_files_count(tmp_path, box):
    found = opened(tmp_path, "python")
    task = found.tasks[0]
    assert task == Task("python-leap", "train", "python")
    told = found.describe(task)
    assert "leap year" in told and "leap.py" in told and "1900" not in told

    right = EXERCISES["python"][2]
    cheats = {
        "leap_test.py": "",
        "conftest.py": "raise SystemExit(0)",
        "unittest.py": "main = None",
    }
    result = found.evaluate(agent(**{"leap.py": right, **cheats}), task, 0, box, None)
    assert result.solved and result.partial == 1 and result.reason == "", result
    assert set(result.tests.values()) == {True} and len(result.tests) == 2
    assert "leap.py" in result.answer and "conftest" not in result.answer
    # The agent saw neither tests nor the example nor .approaches.
    assert "['leap.py']" in result.log, result.log

    wrong = found.evaluate(
        agent(**{"leap.py": "leap = lambda y: True", **cheats}), task, 0, box, None
    )
    assert not wrong.solved and wrong.partial == 0.5 and not wrong.empty
    assert "test_hundred" in wrong.reason and "two sandboxes" in wrong.reason
    assert "1900" not in wrong.reason and "False" not in wrong.reason  # private tests stay private

    idle = found.evaluate(agent(**cheats), task, 0, box, None)
    assert idle.empty and not idle.solved and "as they were given" in idle.reason


@sandbox
def test_tests_are_shown_where_that_is_asked_for(tmp_path, box):
    found = dataclasses.replace(opened(tmp_path, "python"), show_tests=True)
    files = {"leap.py": "leap = lambda y: True"}
    result = found.evaluate(agent(**files), found.tasks[0], 0, box, None)
    assert "leap_test.py" in result.log and "True is not False" in result.reason


@sandbox
def test_what_cannot_be_graded_here_is_named_and_replaced(tmp_path, box, monkeypatch):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "cache"))
    python = toolchains.find("python")
    finds = {"go": "no such compiler", "python": python}
    monkeypatch.setattr(toolchains, "find", lambda language, jars: finds[language])
    root = tmp_path / "exercises"
    write_exercise(root, "go")
    for name in ("one", "two", "three"):
        write_exercise(root, "python", name)
    broken = write_exercise(root, "python", "broken")
    (broken / ".meta/example.python").write_text("def leap(y): return None\n")
    given = write_exercise(root, "python", "given")
    (given / "leap.py").write_text(EXERCISES["python"][2])
    config = BenchmarkConfig("polyglot", str(root), 2, 1, seed=1, languages=("go", "python"))
    found = open_benchmark(config, box)
    assert [t.split for t in found.tasks] == ["train", "train", "held_out"]
    assert {t.id for t in found.tasks} == {"python-one", "python-two", "python-three"}
    assert found.excluded["go"] == "no such compiler"
    for name, why in (
        ("broken", "reference does not pass"),
        ("given", "stubs that are given pass"),
    ):
        said = found.excluded.get(f"python-{name}")
        assert said is None or why in said
    # All are asked for where four are wanted, and then there are too few.
    with pytest.raises(UserError, match="4 tasks, and 3 of 5"):
        open_benchmark(dataclasses.replace(config, train=3), box)


def test_a_wrong_path_is_said(tmp_path):
    with pytest.raises(UserError, match="has no LANGUAGE/exercises/practice"):
        polyglot.open_polyglot(str(tmp_path), tmp_path, ["python"])
    with pytest.raises(UserError, match="'cobol' is none of"):
        polyglot.open_polyglot(str(tmp_path), tmp_path, ["cobol"])
    folder = write_exercise(tmp_path, "python")
    (folder / "leap.py").unlink()
    with pytest.raises(UserError, match=r"\['leap.py'\], which are not there"):
        polyglot.open_polyglot(str(tmp_path), tmp_path, ["python"])
    (folder / ".meta/config.json").write_text("{")
    with pytest.raises(UserError, match="does not say which files"):
        polyglot.open_polyglot(str(tmp_path), tmp_path, ["python"])
    with pytest.raises(UserError, match="needs path"):
        BenchmarkConfig("polyglot")
    with pytest.raises(UserError, match="train=0"):
        BenchmarkConfig("human_eval", train=0)


def test_a_manifest_is_never_the_agents(tmp_path):
    e = polyglot.read_exercise("rust", write_exercise(tmp_path, "rust"))
    assert e.solution == ("src/lib.rs",) and "Cargo.toml" in e.support
    assert set(e.tests) == {"tests/leap.rs"} and set(e.reference) == {"src/lib.rs"}
