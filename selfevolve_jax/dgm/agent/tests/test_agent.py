"""The agent's own tests: python3 -m unittest discover -s tests"""

from __future__ import annotations

import os
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import coding_agent
import llm
from tools import bash, edit


def call(name: str, **arguments: object) -> dict:
    return {"id": "1", "function": {"name": name, "arguments": arguments}}


class InAFolder(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)


class Forward(InAFolder):
    def run_on(self, *answers: dict) -> tuple[str, list[tuple[str, str]]]:
        """Plays these answers of the model; returns how it ended, and the log."""
        script, entries = iter(answers), []

        def chat(messages: list[dict], tools: list[dict], seconds: float) -> llm.Answer:
            return llm.parse(next(script))

        end = coding_agent.forward("a task", lambda *entry: entries.append(entry), 60, chat)
        return end, entries

    def test_it_runs_tools_and_stops(self) -> None:
        create = call("edit", command="create", path="a.txt", file_text="hello")
        end, entries = self.run_on({"tool_calls": [create]}, {"content": "It is there."})
        self.assertEqual(end, "done")
        self.assertEqual(Path("a.txt").read_text(), "hello")
        self.assertIn(("tool output edit", "a.txt written."), entries)

    def test_what_goes_wrong_in_a_tool_is_its_output(self) -> None:
        calls = [call("none"), call("bash", wrong=1), call("edit", command="view", path="no")]
        end, entries = self.run_on({"tool_calls": calls}, {"content": "Well."})
        outputs = [text for marker, text in entries if marker.startswith("tool output")]
        self.assertEqual(end, "done")
        self.assertEqual([text[:5] for text in outputs], ["Error"] * 3)

    def test_steps_are_bounded(self) -> None:
        answers = [{"tool_calls": [call("bash", command=":")]}] * (coding_agent.MAX_STEPS + 1)
        self.assertEqual(self.run_on(*answers)[0], "out of steps")

    def test_the_oldest_outputs_are_trimmed_first_and_the_last_never(self) -> None:
        tool = [{"role": "tool", "content": letter * 1000} for letter in "abc"]
        messages = [{"role": "user", "content": "t" * 1000}, *tool]
        self.assertEqual(coding_agent.trim(messages, 3500), 1)
        self.assertEqual([m["content"][0] for m in messages], ["t", "[", "b", "c"])
        self.assertEqual(coding_agent.trim(messages, 0), 1)
        self.assertEqual([m["content"][0] for m in messages], ["t", "[", "[", "c"])


class Calls(unittest.TestCase):
    def test_a_call_may_be_written_as_text(self) -> None:
        text = 'So:\n```tool\n{"name": "bash", "arguments": {"command": "ls"}}\n```\n'
        (found,) = llm.calls_in_text(text)
        self.assertEqual((found.name, found.arguments), ("bash", {"command": "ls"}))
        self.assertEqual(llm.calls_in_text('```json\n{"answer": 4}\n```'), [])
        (found,) = llm.calls_in_text('<tool_call>{"name": "a", "arguments": "{}"}</tool_call>')
        self.assertEqual((found.name, found.arguments, found.error), ("a", {}, ""))

    def test_a_call_in_text_that_is_cut_off_is_told_to_the_model(self) -> None:
        (found,) = llm.calls_in_text('```tool\n{"name": "bash", "argum')
        self.assertIn("Error: the call is not", found.error)

    def test_broken_arguments_are_told_to_the_model(self) -> None:
        item = {"id": "1", "function": {"name": "bash", "arguments": '{"command": "ls'}}
        answer = llm.parse({"content": None, "tool_calls": [item]})
        self.assertIn("not JSON", answer.calls[0].error)
        self.assertEqual(answer.message["tool_calls"][0]["function"]["arguments"], "{}")


class Tools(InAFolder):
    def test_bash_says_output_and_exit_code(self) -> None:
        self.assertEqual(bash.tool_function("echo a; echo b >&2; exit 3"), "a\nb\n\n[exit code 3]")

    def test_bash_cuts_the_middle_of_a_long_output(self) -> None:
        output = bash.tool_function("echo first; seq 100000; echo last")
        self.assertLess(len(output), bash.MAX_OUTPUT_BYTES + 100)
        self.assertTrue(output.startswith("first\n1\n") and "\nlast\n" in output)

    def test_bash_does_not_wait_for_what_runs_on(self) -> None:
        self.assertEqual(bash.tool_function("sleep 1000 & echo a"), "a\n\n[exit code 0]")

    def test_edit_creates_views_and_replaces(self) -> None:
        edit.tool_function("create", "d/a.py", "x = 1\n")
        self.assertIn("     1\tx = 1", edit.tool_function("view", "d/a.py"))
        self.assertIn("Error", edit.tool_function("create", "d/a.py", ""))
        edit.tool_function("replace", "d/a.py", "x = 2\n")
        self.assertEqual(Path("d/a.py").read_text(), "x = 2\n")
        self.assertEqual(edit.tool_function("view", "."), "d/\nd/a.py")


if __name__ == "__main__":
    unittest.main()
