"""Published test sets by name: where each is on the Hugging Face hub, and how it is read. Those with
pictures are in `vlm_suites`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selfevolve_jax import vlm_suites
from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.dataset import DataConfig, Form
from selfevolve_jax.tasks.prompts import BOXED_SUFFIX
from selfevolve_jax.tasks.records import read_records


def _suite(path: str, split: str, **rest) -> DataConfig:
    """Every row of one split, asked as the paper asks (SRT, arXiv 2505.21444): in the chat template,
    with its suffix."""
    settings = {"question_column": "problem", "chat": True, "suffix": BOXED_SUFFIX, **rest}
    return DataConfig(path=path, split=split, held_out_fraction=0.0, **settings)


SUITES = {
    # 30 problems. The data set's card: id, problem, solution, answer (text), url, year; split train.
    "aime24": _suite("HuggingFaceH4/aime_2024", "train"),
    # 30 problems. The card: problem, answer, id, all text; split test, the file test.jsonl.
    "aime25": _suite("math-ai/aime25", "test"),
    # 83 problems of AMC 12, 2022 and 2023. The card: id, problem, answer (float64), url; split train.
    "amc": _suite("AI-MO/aimo-validation-amc", "train"),
    # 500 problems. Readers of it on GitHub take problem, answer, subject, level of split test.
    "math-500": _suite("HuggingFaceH4/MATH-500", "test"),
    # 500 problems held out of MATH's 12,000, by the same columns. EasyR1's README and configs
    # (hiyouga/EasyR1) name problem and answer, and the splits train and test.
    "math-12k": _suite("hiyouga/math12k", "test"),
    # 1,319 problems. The card: configs main and socratic; question, answer; splits train and test.
    # The answer is a worked solution whose last line is "#### 42".
    "gsm8k": _suite(
        "openai/gsm8k",
        "test",
        subset="main",
        question_column="question",
        answer_pattern=r"#### *(.+)",
    ),
}


def suite(name: str) -> DataConfig | None:
    """The suite that `name` means: NAME, or NAME=PATH for a copy of it on disk; None for anything else,
    which is then a path or a hub id of the user's own."""
    known, _, path = name.partition("=")
    found = SUITES.get(known) or vlm_suites.SUITES.get(known)
    return replace(found, path=path) if found and path else found


def form(name: str | None) -> Form | None:
    """How the suite that `name` means holds its problems, where not plainly in columns."""
    return None if name is None else vlm_suites.FORMS.get(name.partition("=")[0])


def check_there(config: DataConfig, name: str) -> None:
    """Reads the first record, before anything costly. UserError for a data set that is not here and
    cannot be had, with the command that gets it; `name` is what was asked for."""
    columns = (config.question_column, config.answer_column, config.image_column)
    wanted = [column for column in columns if column is not None]
    try:
        next(iter(read_records(config.path, config.subset, config.split, wanted)), None)
    except UserError as error:
        # Without a cause it is there, and other than expected; a local one has no command to get it.
        if Path(config.path).expanduser().exists() or error.__cause__ is None:
            raise
        reason = (str(error.__cause__).strip() or type(error.__cause__).__name__).splitlines()[0]
        then = "DIR" if suite(name) is None else f"{name.partition('=')[0]}=DIR"
        raise UserError(
            f"suite {name}: the data set {config.path} is not here, and could not be had from the "
            f"hub: {reason}\nFix, where there is a network:\n"
            f"  hf download --repo-type dataset {config.path} --local-dir DIR\nthen --suite {then}"
        ) from error
