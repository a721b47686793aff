"""Questions that the base writes for the arms that train on them: what it is shown, what comes out.
Against a stand-in for the engine, whose texts are known."""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from selfevolve_jax import evaluate, run_dir, sampling_job
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.mm_upt.questions import written
from selfevolve_jax.mm_upt.recipe import MMUPTRecipe, QuestionsConfig
from selfevolve_jax.mm_upt.run import load_task
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.synthetic import PROMPTS
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.pictures import PicturesConfig
from selfevolve_jax.trainer_config import TrainerConfig
from tests import seeing
from tests.mm_upt.test_base import MODEL

TRAINER = TrainerConfig(samples_per_prompt=4, max_new_tokens=40)
RECIPE = MMUPTRecipe(
    task=PicturesConfig(train_rows=10, held_out_rows=5),
    trainer=TRAINER,
    arms=("direct", "in_context"),
)
WEIGHTS: Any = {"w": jnp.ones(2)}
DRAWN = Policy(WEIGHTS, MODEL, pictures.tokenizer(), (49,), 0, pictures.IMAGES)
TEXT = seeing.tokenizer()
SEES = Policy(
    WEIGHTS,
    replace(MODEL, vision=seeing.VISION),
    TEXT,
    (seeing.TURN_END,),
    0,
    seeing.IMAGES,
)
# Three samples of four say zz, which is gold nowhere.
VOTES = ["1+1=zz.", "2=zz.", "3=4.", "zz=zz."]


class Engine:
    """asked: (row id, prompt, samples) of every draw. write, answer: the texts, by row id and sample.
    dies_at: the call at which the process is killed."""

    def __init__(self):
        self.asked, self.calls, self.dies_at = [], 0, None
        self.write = lambda row, g: f"count b{row}?"
        self.answer = lambda row, g: VOTES[g]

    def __call__(self, params, prompts, row_ids, n, *_, stop_tokens, **__):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        tokenizer = pictures.tokenizer() if stop_tokens[0] == DRAWN.stop_tokens[0] else TEXT
        tokens = np.zeros((len(prompts), n, 80), np.int32)
        lengths = np.zeros(tokens.shape[:2], np.int32)
        for r, (row, prompt) in enumerate(zip(row_ids, prompts, strict=True)):
            shown = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", tokenizer.decode(prompt))
            self.asked.append((row, shown, n))
            asks = shown.endswith("ask:") or "ake up a" in shown
            for g in range(n):
                text = (self.write if asks else self.answer)(row, g)
                ids = tokenizer.encode(text, add_special_tokens=False)
                ids += [seeing.TURN_END] * (tokenizer is TEXT)
                tokens[r, g, : len(ids)], lengths[r, g] = ids, len(ids)
        return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)

    def prompts(self, wanted):
        return {row: text for row, text, _ in self.asked if (wanted in text)}


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(evaluate, "generate", engine)
    monkeypatch.setattr(evaluate, "encode_images", lambda *_: None)
    return engine


@pytest.fixture
def write(engine, tmp_path, mesh1):
    def write(mode, recipe=RECIPE, task=None, policy=DRAWN, name="run"):
        task = task or load_task(recipe.task, policy, recipe.seed)
        said = []
        rows = written(recipe, mode, task, policy, mesh1, tmp_path / name, said.append)
        return rows, said

    return write


def tree(folder):
    """The bytes of every file, less what config.json says of the moment."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: run_dir.read_config(p.parent)["config"] if p.name == "config.json" else p.read_bytes()
        for name, p in files.items()
    }


def test_direct_sees_the_pictures_and_nothing_else(write, engine, tmp_path):
    task = load_task(RECIPE.task, DRAWN, 0)
    rows, said = write("direct")
    assert [(row, text, n) for row, text, n in engine.asked] == [
        (row.id, f"{pictures.SHOWN}ask:", 1) for row in task.train
    ]
    assert [row.prompt for row in rows] == [
        f"{pictures.SHOWN}count b{row.id}?" for row in task.train
    ]
    assert said == ["direct: 10 texts from 10 prompts, 10 questions kept"]
    summary = run_dir.read_summary(tmp_path / "run" / "questions" / "direct")
    assert (summary["written"], summary["kept"], summary["removed"]) == (10, 10, {})
    assert not (tmp_path / "run" / "labels").exists()  # nobody asked for votes


def test_rows_are_the_tasks_own_in_form_and_share_no_id_with_them(write):
    task = load_task(RECIPE.task, DRAWN, 0)
    rows, _ = write("direct")
    taken = {row.id for row in (*task.train, *task.held_out)}
    assert [row.id for row in rows] == list(range(max(taken) + 1, max(taken) + 11))
    assert pictures.shown_by(task.held_out).isdisjoint(pictures.shown_by(task.train))
    for row, source in zip(rows, task.train, strict=True):
        tokens = pictures.prompt_tokens(
            f"count b{source.id}?", task.tokenizer, MODEL.vision, pictures.IMAGES
        )
        assert row.prompt_tokens == tokens and row.gold is None and not row.extra
        assert row.images == source.images


def test_in_context_shows_the_majoritys_answer(write, engine, tmp_path):
    task = load_task(RECIPE.task, DRAWN, 0)
    rows, _ = write("in_context")
    questions = {row.id: row.prompt for row in task.train}
    assert engine.prompts("ask:") == {i: f"{text}zz.ask:" for i, text in questions.items()}
    votes = [(row, n) for row, text, n in engine.asked if "ask:" not in text]
    assert votes == [(row.id, 4) for row in task.train]
    # Read by the task's own pattern: of "1+1=zz." the vote is zz.
    lines = (tmp_path / "run" / "labels" / "labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["votes"] for line in lines] == [{"zz": 3, "4": 1}] * 10
    assert len(rows) == 10


def test_gold_changes_no_byte(write, tmp_path):
    """The rows' answers are replaced by others, and nothing that is made differs."""
    recipe = replace(RECIPE, questions=QuestionsConfig(vote_low=0.1))
    task = load_task(RECIPE.task, DRAWN, 0)
    lied = replace(task, train=[replace(row, gold="77", extra={"x": 1}) for row in task.train])
    for mode in ("direct", "in_context"):
        ours, theirs = write(mode, recipe, task), write(mode, recipe, lied, name="lied")
        assert [row.id for row in ours[0]] == [row.id for row in theirs[0]]
        assert ours[1] == theirs[1]
    made, other = tree(tmp_path / "run"), tree(tmp_path / "lied")
    assert made == other and len(made) > 20
    parts = [data for name, data in made.items() if "part_" in name]
    assert len(parts) == 5  # two modes, their votes, the source's
    assert all(b'"gold": null' in part and b'"gold": "' not in part for part in parts)


@pytest.mark.parametrize("dies_at", [2, 4, 5, 8])
def test_killed_at_any_call_it_goes_on_to_the_same_bytes(
    write, engine, tmp_path, monkeypatch, dies_at
):
    """Ten rows, a few at a time: three draws of votes, two of texts, five of votes on these. Another
    folder has the same bytes, too."""
    monkeypatch.setattr(sampling_job, "SAMPLES_A_PART", 16)
    engine.write = lambda row, g: f"count {'bg'[g]}{row}?" if row != 7 else "no."
    options = QuestionsConfig(per_image=2, vote_low=0.1, vote_high=0.9)
    recipe = replace(RECIPE, questions=options)
    whole, said = write("in_context", recipe, name="whole")
    calls = engine.calls
    assert calls == 3 + 2 + 5 and len(whole) == 18
    engine.calls, engine.dies_at = 0, dies_at
    with pytest.raises(KeyboardInterrupt):
        write("in_context", recipe)
    engine.calls, engine.dies_at = 0, None
    again, told = write("in_context", recipe)
    assert engine.calls == calls - (dies_at - 1) and told == said
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")
    assert again == whole


def test_what_is_removed_is_counted(write, engine):
    """Row ids 5 to 14: no question, the source's own, a text that is no question from its start."""
    task = load_task(RECIPE.task, DRAWN, 0)
    own = {row.id: row.prompt.removeprefix(pictures.SHOWN) for row in task.train}
    texts = {5: "4.", 6: own[6], 7: "5.ask:"}
    engine.write = lambda row, g: texts.get(row, f"count b{row}?")
    rows, said = write("direct")
    assert said == [
        "direct: 10 texts from 10 prompts, 7 questions kept; removed: 2 unread, 1 same_as_source"
    ]
    assert len(rows) == 7
    engine.write = lambda row, g: "4."
    with pytest.raises(
        UserError, match=r"no question is left .*Fix: filters or a prompt that suit this model"
    ):
        write("direct", name="other")


def test_the_vote_keeps_what_lies_within(write, engine, tmp_path):
    """Questions 15 to 24: all agree on 15, three of four on most, none can be read on 17."""
    unlike = {15: ["=1."] * 4, 17: ["?"] * 4, 18: ["=1.", "=2.", "=3.", "=4."]}
    engine.answer = lambda row, g: unlike.get(row, VOTES)[g]
    recipe = replace(RECIPE, questions=QuestionsConfig(vote_low=0.5, vote_high=0.9))
    rows, said = write("direct", recipe)
    assert [row.id for row in rows] == [16, *range(19, 25)]
    removed = {"too_unanimous": 1, "too_scattered": 2}
    place = tmp_path / "run" / "questions" / "direct"
    assert json.loads((place / "voted.json").read_text()) == {
        **{"low": 0.5, "high": 0.9, "questions": 10, "kept": 7},
        "removed": removed,
    }
    assert "7 questions kept; removed: 1 too_unanimous, 2 too_scattered" in said[0]
    # One bound alone leaves the other side open, and votes are not drawn again.
    engine.asked.clear()
    above, _ = write("direct", replace(RECIPE, questions=QuestionsConfig(vote_high=0.9)))
    assert [row.id for row in above] == [16, *range(18, 25)] and not engine.asked
    narrow = replace(RECIPE, questions=QuestionsConfig(vote_low=0.8, vote_high=0.9))
    with pytest.raises(UserError, match=r"vote_low=0\.8 .*vote_high=0\.9.*Widen"):
        write("direct", narrow)


def test_only_the_first_rows_are_written_from(write, engine):
    options = QuestionsConfig(images=3, per_image=2)
    engine.write = lambda row, g: f"count {'bg'[g]}{row}?"
    rows, said = write("in_context", replace(RECIPE, questions=options))
    assert Counter((row, n) for row, _, n in engine.asked) == Counter(
        {(i, n): 1 for i in (5, 6, 7) for n in (2, 4)}
    )
    assert len(rows) == 6 and "6 texts from 3 prompts" in said[0]


@pytest.fixture
def data(tmp_path):
    """Five training rows: two about one picture, one of text, one about a copy of a held-out picture,
    one about two; gold is 31 to 35."""
    for name, seed in (("a", 1), ("b", 2), ("copy", 9), ("held", 9)):
        (tmp_path / f"{name}.png").write_bytes(seeing.png(8, 8, seed=seed))
    asked = (
        ("How many dots?", "a.png"),
        ("<image>How wide?", "a.png"),
        ("1+1?", None),
        ("How red?", "copy.png"),
        ("Is <image> larger than <image>?", ["a.png", "b.png"]),
    )
    lines = [
        {"problem": q, "answer": str(31 + i), "images": images}
        for i, (q, images) in enumerate(asked)
    ]
    held = {"problem": "How tall?", "answer": "36", "images": "held.png"}
    for name, rows in (("train", lines), ("held", [held])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return DataConfig(
        str(tmp_path / "train.jsonl"),
        held_out_path=str(tmp_path / "held.jsonl"),
        question_column="problem",
        image_column="images",
        chat=True,
        system="Be brief.",
        suffix=" Box it.",
    )


def on_data(data, **changes):
    return MMUPTRecipe(
        task=data,
        policy=CheckpointConfig("somewhere"),
        trainer=TRAINER,
        arms=("direct", "in_context"),
        **changes,
    )


def test_a_data_set_is_written_about_in_its_own_form(write, engine, data, tmp_path):
    engine.write = lambda row, g: f"<question>What is twice {row}?</question>"
    rows, said = write("direct", on_data(data), policy=SEES)
    assert said == [
        "direct: 2 texts from 2 prompts, 2 questions kept; source rows left out: "
        "1 same_image, 1 without_image, 1 held_out_image"
    ]
    asked = engine.prompts("ake up a")
    assert asked.keys() == {0, 4} and len(engine.asked) == 2
    for prompt in asked.values():
        assert PROMPTS["direct"] in prompt and "system\nBe brief." in prompt
        assert "Box it" not in prompt and not re.search(r"\b3[1-6]\b", prompt)
    task = load_task(data, SEES, 0)
    for row, source, images in zip(rows, (0, 4), (1, 2), strict=True):
        turn = f"<|vision_start|><|image_pad|><|vision_end|>{''}"
        assert f"user\n{turn * images}What is twice {source}? Box it.<|im_end|>" in row.prompt
        assert "system\nBe brief." in row.prompt and len(row.images) == images
        assert row.gold is None and row.id > max(r.id for r in task.held_out)
    line = (tmp_path / "run" / "questions" / "direct" / "questions.jsonl").read_text()
    assert json.loads(line.splitlines()[0])["checkpoint"] == "somewhere"


def test_in_context_on_a_data_set_shows_votes_that_can_be_shown(write, engine, data, tmp_path):
    """Row 1's majority would be read as a picture's place, row 2 has no picture."""
    engine.write = lambda row, g: f"<question>What is twice {row}?</question>"
    engine.answer = lambda row, g: r"\boxed{<image>}" if row == 1 else rf"\boxed{{{50 + row}}}"
    _, said = write("in_context", on_data(data), policy=SEES)
    asked = engine.prompts("ake up a")
    assert {i: re.findall("Answer: (.*)", text) for i, text in asked.items()} == {
        0: ["50"],
        4: ["54"],
    }
    assert "1 without_answer" in said[0] and "1 held_out_image" in said[0]
    voted = {row for row, text, _ in engine.asked if "ake up a" not in text}
    assert voted == {0, 1, 2, 4}
    made = [v for n, v in tree(tmp_path / "run").items() if n.endswith("jsonl")]
    # Paths in them may begin with /tmp/pytest-of-me/pytest-31.
    assert not any(re.search(rb"\b3[1-6]\b", re.sub(rb"pytest-\d+", b"", v)) for v in made)


def test_a_source_whose_every_picture_is_held_out_is_refused(write, data, tmp_path):
    """All the pictures are shown again by other questions that are held out."""
    lines = [
        {"problem": f"Another {name}?", "answer": "1", "images": f"{name}.png"}
        for name in ("a", "b", "copy")
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join((text[0], text[1], text[3], text[4])))
    with pytest.raises(UserError, match="pictures of all 4 training rows"):
        write("direct", on_data(data), policy=SEES)
    assert not (tmp_path / "run").exists()
