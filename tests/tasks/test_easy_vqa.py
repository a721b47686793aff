"""easy-VQA: what the package says against the pixels, no picture in two parts, noisy labels."""

import itertools
import json
import re
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from models.config import VisionConfig
from selfevolve_jax import synthetic
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, load_image, preprocess, prompt_positions
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.tasks import easy_vqa, pictures
from selfevolve_jax.tasks.easy_vqa import (
    ANSWER,
    CHOICES,
    COLOURS,
    END,
    SHAPES,
    SHOWN,
    SIDE,
    VISION,
    Drawing,
    EasyVQAConfig,
    Question,
    facts,
    load_task,
    noisy_response,
)
from selfevolve_jax.tasks.prompts import tokenize_rows

TOKENIZER = easy_vqa.tokenizer()
SMALL = EasyVQAConfig(train_rows=60, held_out_rows=40)
# The names of CSS, which the package's pictures are painted with.
RGB = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
ASKED = (
    Question(0, "what color is the shape?", "blue"),
    Question(0, "what shape is present?", "circle"),
)


def drawing(*questions, shape="circle", color="blue"):
    return Drawing(Image.new("RGB", (SIDE, SIDE)), shape, color, questions or ASKED)


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def everything(package):
    """All rows that there are."""
    return load_task(EasyVQAConfig(5034, 2537), seed=0)


@pytest.fixture(scope="module")
def warm(package):
    return easy_vqa.warm_start(1600)


def seen(image):
    """(shape, colour) by the pixels: the one paint there is, and which part of its box it fills."""
    counts = {rgb: n for n, rgb in image.getcolors(SIDE**2)}
    name = max(RGB, key=lambda name: counts.get(RGB[name], 0))
    there = (np.asarray(image) == RGB[name]).all(-1)
    rows, columns = there.any(1).nonzero()[0], there.any(0).nonzero()[0]
    box = there[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    half = len(box) // 2
    if box[:half].sum() < 0.7 * box[-half:].sum():  # a third, as all triangles stand on their base
        return "triangle", name
    return "rectangle" if box.mean() > 0.9 else "circle", name


def test_no_picture_is_in_two_parts_and_all_are_there(package, everything, warm):
    """By pixels, not by number."""
    held_out, train = (pictures.shown_by(p) for p in (everything.held_out, everything.train))
    learnt = {pictures.fingerprint(d.image) for d in warm}
    assert (len(held_out), len(train), len(learnt)) == (950, 1907, 1600)
    assert not held_out & train and not held_out & learnt and not train & learnt
    for part, files in (
        (held_out, package.get_test_image_paths()),
        (train | learnt, package.get_train_image_paths()),
    ):
        own = {pictures.fingerprint(load_image(file)) for file in files.values()}
        assert len(own) == len(files) and part < own


def test_every_answer_is_what_the_pixels_show(everything):
    rows = [*everything.train, *everything.held_out]
    shown = {file: seen(load_image(file)) for file in {row.images[0] for row in rows}}
    assert all(r.gold == shown[r.images[0]][r.extra["kind"] == "color"] for r in rows)


def test_every_fact_that_is_learnt_is_what_the_pixels_show(warm):
    assert [seen(d.image) for d in warm] == [(d.shape, d.color) for d in warm]
    assert len({(d.shape, d.color) for d in warm}) == len(SHAPES) * len(COLOURS)
    for d in warm:
        assert d.questions and all(q.answer == getattr(d, q.kind) for q in d.questions)


def test_yes_and_no_are_gone_and_nothing_else(package, everything):
    assert everything.counts == {"yes_no": 28_407 + 7_136}
    assert {row.gold for row in everything.train} == set(package.get_answers()) - {"yes", "no"}
    assert {row.gold for row in everything.train} == {*SHAPES, *COLOURS}
    assert {row.gold for row in everything.held_out} == {*SHAPES, *COLOURS}
    texts, answers, _ = package.get_test_questions()
    asked = Counter(zip(texts, answers, strict=True))
    held_out = Counter((row.prompt[len(SHOWN) :], row.gold) for row in everything.held_out)
    assert {a for (_, a) in (asked - held_out)} == {"yes", "no"} and held_out <= asked


def test_every_question_has_tokens_that_read_back(everything):
    texts = {row.prompt[len(SHOWN) :] for row in (*everything.train, *everything.held_out)}
    assert len(texts) == 19
    for text in texts:
        tokens = easy_vqa.encode(text, TOKENIZER)
        assert min(tokens) >= 4 and len(tokens) <= easy_vqa.LONGEST_RESPONSE
        assert TOKENIZER.decode(tokens) == text and text.endswith("?")
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert words | {*SHAPES, *COLOURS} == set(easy_vqa._TEXT) - {"ask", ",", "=", "?", "."}


def test_a_row_is_ready_for_the_model(everything):
    assert everything.images == easy_vqa.IMAGES
    for row in (*everything.train[:50], *everything.held_out[:50]):
        picture = preprocess(load_image(row.images[0]), easy_vqa.IMAGES, VISION)
        assert picture.grid == (8, 8)
        prompt_positions(row.prompt_tokens, [picture.grid], VISION)
        assert row.prompt_tokens.count(pictures.IMAGE_TOKEN) == 16
        text = everything.tokenizer.decode(row.prompt_tokens, skip_special_tokens=True)
        assert row.prompt == SHOWN + text
    assert everything.tokenizer.decode(everything.stop_tokens) == ".?"
    assert everything.train[0].hide_gold().gold is None


def test_another_policys_patches_give_another_number_of_image_tokens(package):
    vision = VisionConfig(16, 1, 2, 16, pictures.IMAGE_TOKEN, (0,), patch=4, window=16)
    images = ImageConfig(min_pixels=64, max_pixels=1024)
    row = load_task(SMALL, 3, vision, images).train[0]
    grid = preprocess(load_image(row.images[0]), images, vision).grid
    assert grid == (8, 8) and row.prompt_tokens.count(pictures.IMAGE_TOKEN) == 16
    prompt_positions(row.prompt_tokens, [grid], vision)


def test_rows_are_a_function_of_the_seed(package):
    task, again, other = (load_task(SMALL, seed) for seed in (3, 3, 4))
    assert task.train == again.train and task.held_out == again.held_out
    assert [row.id for row in (*task.held_out, *task.train)] == list(range(100))
    assert [r.images for r in task.train] != [r.images for r in other.train]
    assert [r.images for r in task.held_out] != [r.images for r in other.held_out]
    more = load_task(EasyVQAConfig(train_rows=70, held_out_rows=40), seed=3)
    assert more.held_out == task.held_out and more.train[:60] == task.train
    fewer = load_task(EasyVQAConfig(train_rows=60, held_out_rows=10), seed=3)
    assert fewer.held_out == task.held_out[:10]
    assert [r.images for r in fewer.train] == [r.images for r in task.train]


def test_a_data_set_of_the_same_pictures_makes_the_same_prompts(package):
    """Through the chat template, as written questions come back."""
    task = load_task(SMALL, 3)
    problems = synthetic.bare_problems(task.train, task.tokenizer)
    made, dropped = tokenize_rows(
        task.tokenizer, problems, name="mine", chat=True, vision=VISION, images=task.images
    )
    assert dropped == 0
    assert [(r.prompt, r.prompt_tokens) for r in made] == [
        (r.prompt, r.prompt_tokens) for r in task.train
    ]


def test_the_special_tokens_are_those_of_the_pictures_task():
    ours, theirs = easy_vqa.tokenizer(), pictures.tokenizer()
    assert ours.all_special_tokens == theirs.all_special_tokens == list(easy_vqa._SPECIAL)
    for token in theirs.all_special_tokens:
        assert ours.convert_tokens_to_ids(token) == theirs.convert_tokens_to_ids(token)
    assert VISION.image_token == ours.convert_tokens_to_ids("<|image_pad|>")
    assert len(ours) == easy_vqa.VOCABULARY == len(ours.get_vocab())


@settings(max_examples=200)
@given(st.lists(st.integers(4, easy_vqa.VOCABULARY - 1), max_size=12))
def test_whatever_is_sampled_reads_back(tokens):
    text = str(TOKENIZER.decode(tokens, skip_special_tokens=True))
    assert easy_vqa.encode(text, TOKENIZER) == tokens


def test_it_is_the_same_after_a_checkpoint(tmp_path):
    ours = easy_vqa.tokenizer()
    ours.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == ours.get_vocab()
    assert loaded.chat_template == ours.chat_template
    for text in ("circle, blue = blue.", "what color is the circle? blue. ask"):
        assert loaded.decode(loaded.encode(text)) == text
    with pytest.raises(Exception, match="UNK"):
        loaded.encode("what colour")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("what colour is it?", "colour"),
        ("What color is the shape?", "What"),
        ("circle, blue = blue!", "!"),
        ("is the shape 3?", "3"),
        ("<pad>what<|vision_start|> shapes?", "shapes"),
    ],
)
def test_unknown_words_are_refused_by_name(text, word):
    with pytest.raises(UserError, match=rf"'{re.escape(word)}' in .* has no token"):
        easy_vqa.encode(text, TOKENIZER)
    with pytest.raises(Exception, match="UNK"):  # and never <pad>, whoever encodes
        TOKENIZER.encode(text.replace("<pad>", ""))


def test_facts_by_hand():
    def of(*pairs):
        return facts([Question(0, text, answer) for text, answer in pairs])

    assert of(("what is the teal shape?", "circle")) == {"shape": "circle", "color": "teal"}
    assert of(("what color is the triangle?", "red")) == {"shape": "triangle", "color": "red"}
    assert of(("what color is the shape?", "red")) == {"color": "red"}
    assert of(("what shape is present?", "circle"), ("what shape is present?", "circle")) == {
        "shape": "circle"
    }
    two = of(("what is the red shape?", "circle"), ("what color is the circle?", "blue"))
    assert two == {"shape": "circle"}  # what the package contradicts itself about is not known


def responses(question, noise, n=6000):
    rng = np.random.default_rng(0)
    return [noisy_response(rng, drawing(), question, noise) for _ in range(n)]


def near(got, want, n=6000):
    return abs(got - want) < 4 * (want * (1 - want) / n) ** 0.5 + 1e-9


@pytest.mark.parametrize(("question", "k"), [(ASKED[0], 8), (ASKED[1], 3)])
def test_noise_rates_by_hand(question, k):
    """A replaced fact is right by chance once in 3 or 8, and so is a replaced answer."""
    noise, n = 0.3, 6000
    form = re.compile(r"(\w+), (\w+) = (\w+)\.")
    texts = responses(question, noise)
    assert all(form.fullmatch(text) for text in texts)
    found = [form.findall(text)[0] for text in texts]
    keeps = {k: 1 - noise * (k - 1) / k for k in (3, 8)}
    shape, color, answer = (Counter(column) for column in zip(*found, strict=True))
    assert set(shape) == set(SHAPES) and set(color) == set(COLOURS)
    assert set(answer) == set(CHOICES[question.kind])
    assert near(shape["circle"] / n, keeps[3]) and near(color["blue"] / n, keeps[8])
    # The answer goes on from its fact, right or wrong.
    own = [(c if question.kind == "color" else s, a) for s, c, a in found]
    assert near(sum(fact == a for fact, a in own) / n, keeps[k])
    wrong = [(fact, a) for fact, a in own if fact not in ("circle", "blue")]
    assert near(sum(f == a for f, a in wrong) / len(wrong), keeps[k], len(wrong))
    assert answer.most_common(1)[0][0] == question.answer  # what the vote says


def test_a_glance_is_the_answer_alone():
    rng = np.random.default_rng(0)
    found = [noisy_response(rng, drawing(), ASKED[0], 0.0, 0.3) for _ in range(6000)]
    share = Counter(found)
    assert set(share) == {"circle, blue = blue.", "= blue."} and near(share["= blue."] / 6000, 0.3)
    assert extract("= blue.", ANSWER.pattern) == "blue"


def test_a_clean_response_reads_back_as_gold(warm):
    rng = np.random.default_rng(0)
    for d in warm[:200]:
        for q in d.questions:
            response = noisy_response(rng, d, q, 0.0)
            assert response == f"{d.shape}, {d.color} = {q.answer}."
            assert extract(response, ANSWER.pattern) == q.answer
            tokens = easy_vqa.encode(response, TOKENIZER)
            assert len(tokens) == 6 <= easy_vqa.LONGEST_RESPONSE
            assert extract(str(TOKENIZER.decode(tokens)), ANSWER.pattern) == q.answer
    assert extract("circle, blue = blue", ANSWER.pattern) is None  # cut off before the end mark
    assert extract("circle, blue = blue?", ANSWER.pattern) is None


def test_examples_answer_or_ask(warm):
    rng = np.random.default_rng(2)
    found = [
        (d, example)
        for d in warm[:200]
        for example in itertools.islice(easy_vqa.noisy_examples(rng, d, asking=0.5), 4)
    ]
    kinds, lengths = Counter(), {True: 0, False: 0}
    for d, example in found:
        own = {q.text: q.answer for q in d.questions}
        prompt = easy_vqa.prompt_tokens(example.text, TOKENIZER, VISION, easy_vqa.IMAGES)
        length = len(prompt) + len(easy_vqa.encode(example.response, TOKENIZER))
        asks = example.text not in own
        lengths[asks] = max(lengths[asks], length)
        if not asks:
            kinds["answer"] += 1
            assert example.response == f"{d.shape}, {d.color} = {own[example.text]}{END}"
        elif example.text == easy_vqa.DIRECT:
            kinds["direct"] += 1
            assert example.response in own
        else:
            kinds["in context"] += 1
            [(question, answer)] = re.findall(r"^(.+\?) (\w+)\. ask$", example.text)
            assert own[question] == answer
            assert example.response in own and example.response != question
    assert kinds["answer"] > 340 and kinds["direct"] > 160 and kinds["in context"] > 80
    # To the token: a batch has the length of the longest.
    assert lengths[False] == easy_vqa.longest_example(False)
    assert lengths[True] == easy_vqa.longest_example(True)


def test_examples_are_a_function_of_the_generator():
    def made(seed, asking):
        rng = np.random.default_rng(seed)
        found = easy_vqa.noisy_examples(rng, drawing(), asking, 0.5)
        return [(e.text, e.response) for e in itertools.islice(found, 30)]

    assert made(1, 0.3) == made(1, 0.3) != made(2, 0.3)
    assert all("=" in response for _, response in made(1, 0.0))


def test_a_drawing_with_one_question_is_asked_for_that():
    one = drawing(ASKED[0])
    found = easy_vqa.noisy_examples(np.random.default_rng(0), one, asking=1.0)
    assert {(e.text, e.response) for e in itertools.islice(found, 40)} == {
        (easy_vqa.DIRECT, ASKED[0].text)
    }


def test_the_warm_start_is_the_first_of_its_part(warm):
    few = easy_vqa.warm_start(5)
    assert [d.questions for d in few] == [d.questions for d in warm[:5]]
    numbers = [d.questions[0].picture for d in warm]
    assert numbers == sorted(set(numbers)) and numbers[0] >= easy_vqa.FIRST_WARM
    with pytest.raises(UserError, match=r"policy\.drawings=1601: .* has 1600 .*at most 1600"):
        easy_vqa.warm_start(1601)


@pytest.mark.parametrize("name", ["train_rows", "held_out_rows"])
def test_impossible_sizes_are_refused(package, name):
    with pytest.raises(UserError, match=rf"task\.{name}=0 must be at least 1"):
        EasyVQAConfig(**{name: 0})
    most = {"train_rows": 5034, "held_out_rows": 2537}[name]
    with pytest.raises(UserError, match=rf"task\.{name}={most + 1}: .*at most {most}\."):
        load_task(EasyVQAConfig(**{"train_rows": 1, "held_out_rows": 1} | {name: most + 1}), 0)


def test_not_installed_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    for use in (lambda: load_task(SMALL, 0), lambda: easy_vqa.warm_start(1)):
        with pytest.raises(UserError, match=r"not installed; fix: uv sync --extra easy-vqa$"):
            use()


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A package with one question a part, about one picture, to be damaged."""
    file = tmp_path / "0.png"
    Image.new("RGB", (SIDE, SIDE)).save(file)

    def asks():
        return ["what shape is present?"], ["circle"], [0]

    found = SimpleNamespace(
        __spec__=SimpleNamespace(name="easy_vqa"),
        get_train_questions=asks,
        get_test_questions=asks,
        get_train_image_paths=lambda: {0: str(file)},
        get_test_image_paths=lambda: {0: str(file)},
        file=file,
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", found)
    return found


def cut(package):
    package.file.write_bytes(package.file.read_bytes()[:60])


def resized(package):
    Image.new("RGB", (SIDE, 48)).save(package.file)


def lost(package):
    package.file.unlink()


def without_pictures(package):
    package.get_test_image_paths = lambda: {}


def other_answers(package):
    package.get_test_questions = lambda: (["what shape is present?"], ["star"], [0])


def bad_json(package):
    package.get_test_questions = lambda: json.loads("[[")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"0\.png: image of 60 bytes"),
        (resized, r"0\.png has 64 x 48 pixels, not 64 x 64"),
        (lost, r"No such file .*0\.png"),
        (without_pictures, r"test picture 0.* is missing"),
        (other_answers, r"it answers 'what shape is present\?' by 'star'"),
        (bad_json, r"Expecting value"),
    ],
)
def test_a_damaged_package_is_refused_with_what_is_wrong(broken, damage, said):
    one = EasyVQAConfig(train_rows=1, held_out_rows=1)
    assert load_task(one, 0).train[0].gold == "circle"  # whole, it will do
    damage(broken)
    with pytest.raises(UserError, match=rf"damaged.*{said}.*--reinstall-package easy-vqa"):
        load_task(one, 0)


def test_a_package_with_other_words_is_refused(broken):
    broken.get_test_questions = lambda: (["which shape is present?"], ["circle"], [0])
    with pytest.raises(UserError, match="'which' in"):
        load_task(EasyVQAConfig(train_rows=1, held_out_rows=1), 0)
