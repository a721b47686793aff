"""What a suite's name means, and what is said where its data set is not to be had."""

import json

import datasets
import pytest

from selfevolve_jax import suites
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.suites import SUITES, check_there, suite
from selfevolve_jax.tasks import dataset
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.prompts import BOXED_SUFFIX
from tests.tasks.conftest import _build

CHAT = "{% for m in messages %}<turn>{{ m.content }}</s>{% endfor %}<turn>"


def test_names_and_copies():
    assert suite("aime24") is SUITES["aime24"]
    copy = suite("gsm8k=/data/gsm8k")
    assert copy is not None and copy.path == "/data/gsm8k"
    assert copy.answer_pattern == SUITES["gsm8k"].answer_pattern and copy.split == "test"
    for other in ("problems.jsonl", "openai/gsm8k", "gsm8", "=x", ""):
        assert suite(other) is None


def test_every_suite_asks_as_the_paper_does():
    assert set(SUITES) == {"aime24", "aime25", "amc", "math-500", "math-12k", "gsm8k"}
    for config in SUITES.values():
        assert config.chat and config.suffix == BOXED_SUFFIX and config.held_out_fraction == 0
        assert (config.pattern, config.equivalence) == ("boxed", "math")


# A row of each, with the columns and types of its data set.
RECORDS = {
    "aime24": {
        "id": 60,
        "problem": "Every morning",
        "solution": "…",
        "answer": "204",
        "year": "2024",
    },
    "aime25": {"problem": "Find the sum", "answer": "70", "id": "0"},
    "amc": {"id": 0, "problem": "Cities", "answer": 142.0, "url": "https://"},
    "math-500": {"problem": "Convert", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "level": 2},
    "math-12k": {"problem": "How many", "answer": "2"},
    "gsm8k": {"question": "Janet's ducks", "answer": "16 - 3 = <<16-3=13>>13\n#### 1,080"},
}
GOLD = {name: str(record["answer"]) for name, record in RECORDS.items()} | {
    "amc": "142",
    "gsm8k": "1,080",
}


@pytest.mark.parametrize("name", SUITES)
def test_a_copy_on_disk_is_read(name, tmp_path):
    folder = tmp_path / "copy"
    data = datasets.Dataset.from_list([RECORDS[name]])
    datasets.DatasetDict({SUITES[name].split: data}).save_to_disk(str(folder))
    config = suite(f"{name}={folder}")
    assert config is not None
    check_there(config, name)
    task = dataset.load_task(config, _build(CHAT))
    (row,) = task.train
    assert row.gold == GOLD[name] and not task.held_out
    asked = RECORDS[name].get("problem") or RECORDS[name]["question"]
    assert asked + BOXED_SUFFIX in row.prompt and row.prompt != asked + BOXED_SUFFIX


def test_gsm8k_golds_with_commas_equal_plain_numbers():
    with Equivalence("math") as equivalence:
        assert equivalence.equal_pairs([("1,080", "1080"), ("1,080", "80")]) == [True, False]


@pytest.fixture
def offline(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nmore words")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_missing_suite_is_named_with_the_command_that_gets_it(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        check_there(SUITES["math-500"], "math-500")
    message = str(caught.value)
    assert "HuggingFaceH4/MATH-500 is not here" in message and "Couldn't reach the Hub" in message
    assert "hf download --repo-type dataset HuggingFaceH4/MATH-500 --local-dir DIR" in message
    assert message.endswith("--suite math-500=DIR") and "more words" not in message
    with pytest.raises(UserError) as caught:
        check_there(DataConfig("org/mine"), "org/mine")
    assert "dataset org/mine --local-dir DIR\nthen --suite DIR" in str(caught.value)


def test_a_local_mistake_gets_no_command(offline, tmp_path):
    file = tmp_path / "x.jsonl"
    for path, text, words in (
        (tmp_path / "none.jsonl", None, "no such file"),
        (file, "{", "x.jsonl, line 1"),
    ):
        if text:
            path.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            check_there(DataConfig(str(path)), str(path))
        assert "hf download" not in str(caught.value)
    file.write_text(json.dumps({"question": "1+1=", "answer": "2"}) + "\n")
    suites.check_there(DataConfig(str(file)), str(file))
