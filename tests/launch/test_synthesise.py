"""`selfevolve synthesise` and what surrounds it, as typed: labels before, labels and votes after; and
`evaluate` with pictures and a second judge. The engine's texts are given."""

import json
import re
from dataclasses import replace

import datasets
import jax
import numpy as np
import pytest
from PIL import Image

from launch import problems
from launch.cli import main
from selfevolve_jax import checkpoint, evaluate, run_dir, state
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.dataset import DataConfig, load_task
from tests import seeing
from tests.launch.test_cli import place, refused, says, tree
from tests.launch.test_generate import TEXT, policy
from tests.test_endpoint import reply, server

__all__ = ["place", "policy", "server"]  # fixtures

WRITTEN = [
    "<question>What is the sum of the dots?</question>",
    "<question>What is twice {n}?</question>",
]
ANSWERS = [r"\boxed{3}", r"\boxed{three}", "Three, I think.", r"\boxed{3}"]


@pytest.fixture
def source(place, monkeypatch):
    """Two rows about two pictures; and an engine that writes where a question is to be made up."""

    def generate(params, prompts, row_ids, n, *_, **__):
        texts = []
        for number, prompt in zip(row_ids, prompts, strict=True):
            asked = "ake up a" in TEXT.decode(prompt)
            pool = [text.format(n=number) for text in WRITTEN] if asked else ANSWERS
            texts.append([pool[g % len(pool)] for g in range(n)])
        ids = [[[*TEXT.encode(t), seeing.TURN_END] for t in group] for group in texts]
        tokens = np.zeros((len(texts), n, 80), np.int32)
        lengths = np.zeros(tokens.shape[:2], np.int32)
        for r, g in np.ndindex(*lengths.shape):
            lengths[r, g] = len(ids[r][g])
            tokens[r, g, : lengths[r, g]] = ids[r][g]
        return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)

    monkeypatch.setattr(evaluate, "generate", generate)
    rows = []
    for i in range(2):
        (place / f"{i}.png").write_bytes(seeing.png(8, 8, seed=i))
        rows.append(
            {"question": f"How many dots, {i}?", "answer": str(3 + i), "images": f"{i}.png"}
        )
    (place / "source.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return place


SUITE = ["--suite", "source.jsonl", "--image-column", "images", "--chat"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_direct_questions_become_a_data_set(policy, source, capsys):
    command = ["synthesise", str(policy[0]), *SUITE, "--out", "new", "--per-image", "2"]
    main(command)
    shown = capsys.readouterr().out
    assert "2 prompts, 2 texts each, direct" in shown
    assert f"kept 4 of 4: {source / 'new' / 'questions.jsonl'}" in shown
    found = lines(source / "new" / "questions.jsonl")
    assert [x["question"] for x in found] == [
        *("What is the sum of the dots?", "What is twice 0?"),
        *("What is the sum of the dots?", "What is twice 1?"),
    ]
    for line in found:
        assert line["checkpoint"] == str(policy[0] / "checkpoints" / "0")
        assert line["mode"] == "direct"
        # Gold is neither here nor in what the model was shown.
        assert not re.search(r"Answer|\b[34]\b", line["prompt"])
    told = run_dir.read_config(source / "new")["config"]
    assert told["kind"] == "questions" and told["task"] == "source.jsonl: direct questions"
    before = tree(source / "new")
    main(command)
    assert tree(source / "new") == before
    message = refused(capsys, *command, "--seed", "1")
    assert says(message, "seed: 0 -> 1", "another folder")
    message = refused(capsys, *command, "--filters.duplicates", "keep")
    assert says(message, "other filters", "'normalised' -> 'keep'")
    message = refused(capsys, "label", policy[0], *SUITE, "--out", "new")
    assert says(message, "holds questions, not labels")


def test_label_free_from_images_to_voted_questions(policy, source, capsys):
    writer = str(policy[0])
    main(["label", writer, *SUITE, "--answer-column", "None", "--samples", "4", "--out", "old"])
    write = [*("synthesise", writer, *SUITE, "--answer-column", "None"), "--out", "new"]
    write += ["--mode", "in_context", "--labels", "old", "--per-image", "2"]
    main(write)
    found = lines(source / "new" / "questions.jsonl")
    # The majority answer of each is 3, where gold is 3 and 4.
    assert [re.findall("Answer: (.*)", line["prompt"]) for line in found] == [["3"]] * 4
    new = ["--suite", "new/questions.jsonl", "--image-column", "image", "--chat"]
    new += ["--answer-column", "None"]
    main(["label", writer, *new, "--samples", "4", "--out", "votes"])
    capsys.readouterr()
    main([*write, "--votes", "votes", "--vote-low", "0.5", "--vote-high", "0.5"])
    shown = capsys.readouterr().out
    assert f"kept 4 of 4: {source / 'new' / 'voted.jsonl'}" in shown
    voted = lines(source / "new" / "voted.jsonl")
    assert voted == [
        line | {"pseudo_label": "3", "majority_fraction": 0.5}
        for line in lines(source / "new" / "questions.jsonl")
    ]
    message = refused(capsys, *write, "--votes", "votes", "--vote-low", "0.6")
    assert says(message, "no question of 4", "too_scattered")
    message = refused(capsys, *write, "--votes", "old")
    assert says(message, "labels are of other rows")


def test_in_context_with_gold(policy, source):
    main(["synthesise", str(policy[0]), *SUITE, "--out", "new", "--mode", "in_context"])
    found = lines(source / "new" / "questions.jsonl")
    asked = {(x["source_row"], *re.findall("Answer: (.*)", x["prompt"])) for x in found}
    assert asked == {(0, "3"), (1, "4")}


def test_a_run_on_drawn_pictures_writes_about_its_own_training_rows(
    policy, place, monkeypatch, capsys, mesh1
):
    """No suite and no chat of its own: the forms that the pictures task teaches."""
    model = replace(
        policy[1].model,
        vocab_size=pictures.VOCABULARY,
        vision=pictures.VISION,
        mrope_sections=(2, 1, 1),
    )
    params = state.init_params(model, jax.random.key(0), mesh1)
    shown = pictures.PicturesConfig(kinds=("count",), train_rows=3, held_out_rows=2)
    task = pictures.load_task(shown, 0)
    made = Policy(params, model, task.tokenizer, task.stop_tokens, 0, pictures.IMAGES)
    checkpoint.save_policy(made, place / "run")
    config = {"task": run_dir.jsonable(shown), "seed": 0, "trainer": {"max_new_tokens": 12}}
    run_dir.write_json_atomic(place / "run" / run_dir.CONFIG, {"config": config})
    seen = []

    def generate(params, prompts, row_ids, n, *_, **rest):
        seen.extend(zip(row_ids, prompts, strict=True))
        ids = task.tokenizer.encode("count teal?", add_special_tokens=False)
        assert rest["stop_tokens"] == task.stop_tokens and ids[-1] in task.stop_tokens
        tokens = np.zeros((len(prompts), n, 12), np.int32)
        tokens[:, :, : len(ids)] = ids
        lengths = np.full(tokens.shape[:2], len(ids), np.int32)
        return Samples(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 0)

    monkeypatch.setattr(evaluate, "generate", generate)
    command = ["synthesise", "run", "--per-image", "2", "--reads", r"(.+\?)$"]
    main([*command, "--out", "new", "--prompt", pictures.DIRECT])
    assert "removed, duplicate: 3\nkept 3 of 6" in capsys.readouterr().out
    found = lines(place / "new" / "questions.jsonl")
    assert [line["source_row"] for line in found] == [row.id for row in task.train]
    assert [prompt for _, prompt in seen] == [
        pictures.prompt_tokens(pictures.DIRECT, task.tokenizer, pictures.VISION, pictures.IMAGES)
    ] * 3
    # The new rows are to the model what the task's own are.
    data = DataConfig(
        "new/questions.jsonl",
        image_column="image",
        answer_column=None,
        chat=True,
        held_out_fraction=0.0,
    )
    new = load_task(
        data, task.tokenizer, task.stop_tokens, vision=pictures.VISION, images=pictures.IMAGES
    )
    assert pictures.shown_by(task.train) == {
        pictures.fingerprint(Image.open(image).convert("RGB"))
        for r in new.train
        for image in r.images
    }
    for row in new.train:
        tokens = pictures.prompt_tokens(
            "count teal?", task.tokenizer, pictures.VISION, pictures.IMAGES
        )
        assert row.prompt_tokens == tokens and row.gold is None
        assert row.prompt == pictures.SHOWN + "count teal?"
    assert set(new.stop_tokens) >= set(task.stop_tokens)
    seen.clear()
    main([*command, "--out", "context", "--prompt", pictures.IN_CONTEXT, "--mode", "in_context"])
    for (_, prompt), row in zip(seen, task.train, strict=True):
        question = row.prompt.removeprefix(pictures.SHOWN)
        text = pictures.IN_CONTEXT.format(question=question, answer=row.gold)
        assert prompt == pictures.prompt_tokens(
            text, task.tokenizer, pictures.VISION, pictures.IMAGES
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--per-image", "0"], ["per_image=0"]),
        (["--sampling.temperature", "0"], ["temperature=0", "again"]),
        (["--labels", "x"], ["labels=x", "mode=direct reads no answer"]),
        (["--reads", "("], ["reads='('", "no regular expression"]),
        (["--filters.asks", "("], ["asks='('", "no regular expression"]),
        (["--vote-low", "0.9", "--vote-high", "0.1"], ["low=0.9", "high=0.1"]),
        (["--mode", "in_context", "--labels", "none"], ["none has no labels.jsonl"]),
        (["--mode", "in_context", "--answer-column", "None"], ["--labels"]),
        (["--mode", "in_context", "--prompt", "ask:"], ["has no {question}"]),
        (["--prompt", "{question}"], ["must not have {question}"]),
        (["--image-column", "None"], ["2 without_image"]),
    ],
)
def test_a_mistake_is_one_box_and_makes_nothing(policy, source, capsys, options, words):
    before = tree(source)
    message = refused(capsys, "synthesise", policy[0], *SUITE, "--out", "new", *options)
    assert says(message, *words), message
    assert tree(source) == before


def test_evaluate_reads_a_benchmark_with_pictures_and_asks_a_judge(policy, source, capsys, server):
    row = {
        "question": "How many?",
        "answer": "3",
        "choices": None,
        "unit": None,
        "precision": None,
        "answer_type": "integer",
        "decoded_image": {"bytes": seeing.png(8, 8), "path": None},
    }
    data = datasets.Dataset.from_list([row]).cast_column("decoded_image", datasets.Image())
    datasets.DatasetDict({"testmini": data}).save_to_disk("copy")
    server.answer = lambda _, said: (
        200,
        reply("yes" if "hree" in said["response"] else "no"),
        {},
    )
    command = ["evaluate", str(policy[0]), "--suite", "mathvista=copy", "--k", "4", "--out", "new"]
    main(command)
    plain = capsys.readouterr().out
    assert "judge" not in plain and server.seen == []
    before = (source / "new" / "summary.json").read_bytes()
    main([*command, "--judge-url", server.url, "--judge-model", "m"])
    shown = capsys.readouterr().out
    assert "avg@4     0.500  [0.500, 0.500]   avg@4 judged     1.000  [1.000, 1.000]" in shown
    assert "judge m: asked 2, cached 0, timeouts 0, unanswered 0" in shown
    assert all(line.split("   ")[0] in shown for line in plain.splitlines())
    assert len(server.seen) == 2 and (source / "new" / "summary.json").read_bytes() == before
    figures = json.loads((source / "new" / "judged.json").read_text())["figures"]
    assert figures["avg@4 judged"] == 1.0 and "avg@4" not in figures
    main([*command, "--judge-url", server.url, "--judge-model", "m"])
    assert "asked 0, cached 2" in capsys.readouterr().out and len(server.seen) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--judge-url", "http://h/v1", "--out", "new"], ["judge_model=None", "needs both"]),
        (["--judge-model", "m", "--out", "new"], ["judge_url=None", "needs both"]),
        (["--judge-url", "http://h/v1", "--judge-model", "m"], ["needs --out"]),
        (["--judge-url", "h/v1", "--judge-model", "m", "--out", "new"], ["judge_url='h/v1'"]),
    ],
)
def test_a_judge_that_cannot_be_is_refused_before_weights_are_read(
    policy, source, capsys, monkeypatch, options, words
):
    monkeypatch.setattr(problems.source, "load_policy", None)
    message = refused(capsys, "evaluate", policy[0], *SUITE, *options)
    assert says(message, *words) and not (source / "new").exists()
