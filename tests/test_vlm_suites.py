"""The benchmarks with pictures: rows of their data sets' columns and types, as they are asked."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config

from selfevolve_jax import suites, vlm_suites
from selfevolve_jax.errors import UserError
from selfevolve_jax.suites import check_there, form, suite
from selfevolve_jax.tasks import dataset
from selfevolve_jax.vlm_suites import FORMS, SUFFIX, SUITES
from tests.seeing import IMAGE, IMAGES, VISION, png, tokenizer

PICTURE = png(8, 8)
LETTER = "Answer with the letter of the right choice."


@pytest.fixture(scope="module")
def text():
    return tokenizer()


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def mathvista(**changes):
    record = {
        "pid": "1",
        "question": "The derivative at x=2 is ____ that at x=5",
        "image": "images/1.jpg",
        "choices": ["larger than", "equal to", "smaller than"],
        "unit": None,
        "precision": None,
        "answer": "equal to",
        "question_type": "multi_choice",
        "answer_type": "text",
        "query": "Hint: …",
    }
    return record | changes


def free(answer, kind, precision=None, unit=None):
    return mathvista(
        question="How much?",
        choices=None,
        answer=answer,
        question_type="free_form",
        answer_type=kind,
        precision=precision,
        unit=unit,
    )


def mathvision(question, options, answer):
    return {
        "id": "7",
        "question": question,
        "options": options,
        "image": "images/7.jpg",
        "answer": answer,
        "level": 2,
    }


def mathverse(question, kind, answer):
    return {
        "sample_index": "1",
        "problem_index": "1",
        "problem_version": "Vision Only" if not question else "Text Dominant",
        "question": question,
        "answer": answer,
        "question_type": kind,
        "query_wo": "…",
        "question_for_eval": "…",
    }


def we_math(option, answer):
    return {
        "ID": "3",
        "split": "testmini",
        "knowledge concept": "Area",
        "question": "What is its area?",
        "option": option,
        "answer": answer,
        "key": "2steps_1",
    }


# suite: [(record, what is asked, gold)]
CASES = {
    "mathvista": [
        (
            mathvista(),
            "The derivative at x=2 is ____ that at x=5\nA. larger than\nB. equal to\nC. smaller than\n"
            + LETTER,
            "B",
        ),
        (free("12", "integer"), "How much?\nGive a whole number.", "12"),
        (
            free("1.5", "float", 1.0, "cm"),
            "How much?\nGive a number with 1 decimal place(s). Its unit is cm.",
            "1.5",
        ),
        (free("0.25", "float", 2.0), "How much?\nGive a number with 2 decimal place(s).", "0.25"),
        (free("[1, 2]", "list"), "How much?\nGive a list, as in [1, 2, 3].", "[1, 2]"),
    ],
    "mathvision": [
        (mathvision("How many digits?\n<image1>", [], "8"), "How many digits?", "8"),
        (
            mathvision("Which piece?\n<image1>", list("ABCDE"), "C"),
            f"Which piece?\nThe choices A, B, C, D, E are in the image. {LETTER}",
            "C",
        ),
        (
            mathvision("What is x in <image1>?", ["$3$", "$4$"], "B"),
            f"What is x in figure 1?\nA. $3$\nB. $4$\n{LETTER}",
            "B",
        ),
        (
            mathvision("<image1>\nWhich is next?", ["<image2>", "<image3>"], "A"),
            f"Which is next?\nA. figure 2\nB. figure 3\n{LETTER}",
            "A",
        ),
    ],
    "mathverse": [
        (
            mathverse("Find x.\nChoices:\nA:30\nB:60", "multi-choice", "B"),
            f"Find x.\nChoices:\nA:30\nB:60\n{LETTER}",
            "B",
        ),
        (mathverse("Find x.", "free-form", "12 cm"), "Find x.", "12 cm"),
        (
            mathverse("", "multi-choice", "D"),
            f"The question is written in the image.\n{LETTER}",
            "D",
        ),
        (mathverse("", "free-form", "5"), "The question is written in the image.", "5"),
    ],
    "we-math": [
        (
            we_math("A. 12 cm; B. 1; 2 cm; C. No correct answer", "C"),
            f"What is its area?\nA. 12 cm\nB. 1; 2 cm\nC. No correct answer\n{LETTER}",
            "C",
        ),
        (we_math("A.1;B.2;", "a"), f"What is its area?\nA.1\nB.2\n{LETTER}", "A"),
    ],
}
CASES["mathvision-mini"] = CASES["mathvision"]


def saved(name, records, folder):
    """A copy of the hub's data set on disk, with embedded pictures."""
    column = SUITES[name].image_column
    assert column is not None
    rows = [{**record, column: {"bytes": PICTURE, "path": None}} for record in records]
    data = datasets.Dataset.from_list(rows).cast_column(column, datasets.Image())
    datasets.DatasetDict({SUITES[name].split: data}).save_to_disk(str(folder))


@pytest.mark.parametrize("name", SUITES)
def test_a_copy_on_disk_is_asked_as_worked_out(name, tmp_path, text):
    saved(name, [record for record, _, _ in CASES[name]], tmp_path / "copy")
    asked = f"{name}={tmp_path / 'copy'}"
    config = suite(asked)
    assert config is not None
    check_there(config, asked)
    task = dataset.load_task(config, text, vision=VISION, images=IMAGES, form=form(asked))
    assert len(task.train) == len(CASES[name]) and not task.held_out
    for row, (_, question, gold) in zip(task.train, CASES[name], strict=True):
        shown = "<|vision_start|><|image_pad|><|vision_end|>"
        assert f"user\n{shown}{question}{SUFFIX}<|im_end|>" in row.prompt
        assert row.gold == gold and row.images == (PICTURE,)
        assert row.prompt_tokens.count(IMAGE) == 1


def test_a_parquet_file_of_the_hub_is_read_too(tmp_path, text):
    record = mathvista(decoded_image={"bytes": PICTURE, "path": "1.jpg"})
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "testmini.parquet")
    asked = "mathvista=testmini.parquet"
    config = suite(asked)
    assert config is not None
    task = dataset.load_task(config, text, vision=VISION, images=IMAGES, form=form(asked))
    assert task.train[0].gold == "B" and task.train[0].images == (PICTURE,)


BAD = [
    (
        "mathvista",
        mathvista(answer="equals"),
        "'answer' is 'equals', which is none of its 'choices'",
    ),
    ("mathvista", mathvista(answer=None), "'answer' is None, not a text"),
    ("mathvision", mathvision("q", ["1", "2"], "C"), "'C', not one of the letters AB"),
    ("mathverse", mathverse("q", "free-form", " "), "'answer' is ' ', not a text"),
    ("we-math", we_math("A. 1; B. 2", "C"), "has no such letter"),
    ("we-math", we_math("1; 2", "A"), "has no such letter"),
    ("we-math", we_math(None, "A"), "'option' is None, not a text"),
]


@pytest.mark.parametrize(("name", "record", "words"), BAD)
def test_a_row_that_does_not_fit_is_named(name, record, words, tmp_path):
    good = CASES[name][0][0]
    column = SUITES[name].image_column
    lines = [json.dumps(one | {column: None}) for one in (good, record)]
    (tmp_path / "copy.jsonl").write_text("\n".join(lines))
    config = suite(f"{name}=copy.jsonl")
    assert config is not None
    with pytest.raises(UserError) as caught:
        dataset.read_problems(config, form(name))
    assert "copy.jsonl, line 2" in str(caught.value) and words in str(caught.value)


def test_labels_need_no_gold(tmp_path):
    record = mathvista(decoded_image=None)
    (tmp_path / "copy.jsonl").write_text(json.dumps(record))
    config = suite("mathvista=copy.jsonl")
    assert config is not None
    (problem,) = dataset.read_problems(
        dataset.replace(config, answer_column=None), form("mathvista")
    )
    assert problem.gold is None and problem.question.endswith(LETTER)


def test_names():
    assert set(SUITES) == set(FORMS) and not set(SUITES) & set(suites.SUITES)
    for config in SUITES.values():
        assert config.image_column and config.chat and config.held_out_fraction == 0
        # No question is left out: the largest image of the released processor is 16,384 tokens.
        assert config.max_prompt_tokens > 12_845_056 // 28**2 + 2000
    assert suite("mathvista=x").path == "x" and suite("mathvista") is SUITES["mathvista"]  # pyright: ignore
    assert form("we-math=x") is FORMS["we-math"]
    assert form("gsm8k") is None and form("x.jsonl") is None and form(None) is None


def test_a_missing_benchmark_is_named_with_its_command(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        check_there(vlm_suites.SUITES["mathverse"], "mathverse")
    assert "hf download --repo-type dataset AI4Math/MathVerse --local-dir DIR" in str(caught.value)
    assert str(caught.value).endswith("--suite mathverse=DIR")
