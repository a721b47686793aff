"""Drawings whose pixels show their facts, questions worked by hand, labels with the noise they say."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, load_image, preprocess, prompt_positions
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.tasks import drawings, pictures
from selfevolve_jax.tasks.drawings import (
    COLOURS,
    KINDS,
    SIDE,
    Drawing,
    description,
    draw,
    questions,
)
from selfevolve_jax.tasks.pictures import ANSWER, END, PicturesConfig, load_task, noisy_response
from selfevolve_jax.tasks.prompts import Problem, tokenize_rows

SMALL = PicturesConfig(train_rows=31, held_out_rows=20, hard=0.3)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def task():
    return load_task(SMALL, seed=3)


def of(kind, **facts):
    return Drawing(kind, Image.new("RGB", (SIDE, SIDE)), facts)


def asked(drawing, text):
    return next(q for q in questions(drawing) if q.text == text)


ROWS = [["red", None, "red"], [None, "blue", "gold"], ["red", "red", "red"]]


@pytest.mark.parametrize(
    ("drawing", "text", "steps", "answer"),
    [
        (of("count", rows=ROWS), "count red?", "2+0+3", "5"),
        (of("count", rows=ROWS), "count gold?", "0+1+0", "1"),
        (of("clock", hour=12, quarter=3), "time?", "12,45", "12:45"),
        (of("clock", hour=4, quarter=0), "time?", "4,0", "4:00"),
        (of("clock", hour=9, quarter=0), "hour+5?", "9+5", "2"),
        (of("clock", hour=10, quarter=0), "hour+2?", "10+2", "12"),
        (of("bars", heights={"red": 4, "blue": 6, "gold": 1}), "sum?", "4+6+1", "11"),
        (of("bars", heights={"red": 4, "blue": 6, "gold": 1}), "blue-red?", "6-4", "2"),
        (of("bars", heights={"red": 4, "blue": 4, "gold": 1}), "red-blue?", "4-4", "0"),
        (of("angle", base=90, rays={"red": 210, "gold": 120}), "angle red?", "210-90", "120"),
        (of("shape", wide=3, high=4, triangle=False), "area?", "3*4", "12"),
        (of("shape", wide=3, high=4, triangle=False), "around?", "3+4+3+4", "14"),
        (of("shape", wide=3, high=4, triangle=True), "area?", "3*4/2", "6"),
        (of("shape", wide=3, high=4, triangle=True), "legs?", "3+4", "7"),
    ],
)
def test_worked_by_hand(drawing, text, steps, answer):
    assert asked(drawing, text).solve() == (steps, answer)


@settings(max_examples=60)
@given(SEEDS, st.sampled_from(KINDS), st.booleans())
def test_every_question_is_right_and_answerable(seed, kind, faint):
    drawing = draw(np.random.default_rng(seed), kind, faint)
    found = questions(drawing)
    assert drawing.image.size == (SIDE, SIDE) and drawing.image.mode == "RGB"
    assert len({q.text for q in found}) == len(found) >= 2
    for q in found:
        assert re.fullmatch(r"[a-z0-9+\- ]{1,10}\?", q.text)
        assert all(r in c for r, c in zip(q.readings, q.choices, strict=True))
        steps, answer = q.solve()
        assert answer in q.answers
        if ":" in answer:
            continue
        # Python does the sum as well, on a clock of twelve hours.
        value = eval(steps.replace("/", "//"))
        assert int(answer) == ((value - 1) % 12 + 1 if q.text.startswith("hour") else value)


@settings(max_examples=30)
@given(SEEDS)
def test_the_pixels_show_the_counts(seed):
    drawing = draw(np.random.default_rng(seed), "count")
    paper = drawings._paper()
    for r, row in enumerate(drawing.facts["rows"]):
        for c, name in enumerate(row):
            seen = drawing.image.getpixel((16 * c + 8, 16 * r + 8))
            assert seen == (COLOURS[name] if name else paper.getpixel((16 * c + 8, 16 * r + 8)))


@settings(max_examples=30)
@given(SEEDS)
def test_the_pixels_show_the_bars_and_the_sides(seed):
    rng = np.random.default_rng(seed)
    bars = draw(rng, "bars")
    shown = np.asarray(bars.image)
    for name, height in bars.facts["heights"].items():
        rows = (shown == COLOURS[name]).all(-1).any(axis=1)
        assert rows.sum() == 7 * height + 1
    shape = draw(rng, "shape")
    ink = (np.asarray(shape.image) == (20, 20, 20)).all(-1)
    assert ink.any(axis=0).sum() == 7 * shape.facts["wide"] + 1
    assert ink.any(axis=1).sum() == 7 * shape.facts["high"] + 1


@settings(max_examples=30)
@given(SEEDS)
def test_the_pixels_show_the_directions(seed):
    """The mean direction of a ray's pixels, seen from where all rays meet."""
    rng = np.random.default_rng(seed)
    angle, clock = draw(rng, "angle"), draw(rng, "clock")

    def direction(image, colour, middle):
        y, x = np.nonzero((np.asarray(image) == colour).all(-1))
        return math.degrees(math.atan2(middle[1] - y.mean(), x.mean() - middle[0])) % 360

    def apart(a, b):
        return abs((a - b + 180) % 360 - 180)

    # Rays meet within two pixels of the middle, and the nearest of the twelve directions is the ray's.
    for name, turn in angle.facts["rays"].items():
        assert apart(direction(angle.image, COLOURS[name], (24, 24)), turn) < 35
    hour = 90 - 30 * clock.facts["hour"]
    assert apart(direction(clock.image, COLOURS["red"], (24, 24)), hour) < 25


def test_faint_pictures_differ_by_their_contrast_alone():
    clear, faint = (draw(np.random.default_rng(5), "count", f) for f in (False, True))
    assert clear.facts == faint.facts
    a, b = (np.asarray(d.image).astype(int) for d in (clear, faint))
    assert np.ptp(b) <= np.ptp(a) / 1.9 and len(np.unique(b.reshape(-1, 3), axis=0)) > 1


def test_rows_share_no_picture_and_take_turns(task):
    rows = [*task.held_out, *task.train]
    assert len(pictures.shown_by(rows)) == len(rows) == 51
    assert [row.id for row in rows] == list(range(51))
    for part in (task.held_out, task.train):
        kinds = [row.extra["kind"] for row in part]
        assert kinds == [KINDS[i % len(KINDS)] for i in range(len(part))]
    faint = Counter(row.extra["kind"] for row in task.train if row.extra["faint"])
    assert set(faint.values()) == {1} or set(faint.values()) == {1, 2}  # of 6 or 7 each


def test_rows_are_a_function_of_the_seed(task):
    again, other = load_task(SMALL, seed=3), load_task(SMALL, seed=4)
    assert again.train == task.train and again.held_out == task.held_out
    assert not pictures.shown_by(other.held_out) & pictures.shown_by(task.held_out)
    more = load_task(PicturesConfig(train_rows=40, held_out_rows=20, hard=0.3), seed=3)
    assert more.held_out == task.held_out and more.train[:31] == task.train


def test_a_row_is_ready_for_the_model(task):
    """Its image tokens are those of its picture, its text can be read back, its gold is readable."""
    for row in task.train:
        picture = preprocess(load_image(row.images[0]), task.images, pictures.VISION)
        assert picture.grid == (6, 6)
        positions, delta = prompt_positions(row.prompt_tokens, [picture.grid], pictures.VISION)
        assert row.prompt_tokens.count(pictures.IMAGE_TOKEN) == 9 and delta == 3 - 9
        assert positions.shape == (len(row.prompt_tokens), 3)
        text = task.tokenizer.decode(row.prompt_tokens, skip_special_tokens=True)
        assert row.prompt == pictures.SHOWN + text and text[-1] == "?"
        assert extract(f"1={row.gold}.", ANSWER.pattern) == row.gold
    assert extract("2+0+3=5", ANSWER.pattern) is None  # cut off before the end mark
    assert extract("2+0+3=5?", ANSWER.pattern) is None
    assert task.tokenizer.decode(task.stop_tokens) == ".?"
    assert task.train[0].hide_gold().gold is None and not task.train[0].hide_gold().extra


def test_another_policys_patches_give_another_number_of_image_tokens():
    vision = VisionConfig(16, 1, 2, 16, pictures.IMAGE_TOKEN, (0,), patch=4, window=16)
    task = load_task(SMALL, 3, vision, ImageConfig(min_pixels=64, max_pixels=1024))
    grid = preprocess(load_image(task.train[0].images[0]), task.images, vision).grid
    assert grid == (8, 8) and task.train[0].prompt_tokens.count(pictures.IMAGE_TOKEN) == 16
    prompt_positions(task.train[0].prompt_tokens, [grid], vision)


def test_a_data_set_of_the_same_pictures_makes_the_same_prompts(task):
    """Through the chat template, as DataConfig goes."""
    rows = task.train[:5]
    problems = [
        Problem(r.id, r.prompt[len(pictures.SHOWN) :], r.gold, images=r.images) for r in rows
    ]
    made, dropped = tokenize_rows(
        task.tokenizer,
        problems,
        name="mine",
        chat=True,
        vision=pictures.VISION,
        images=pictures.IMAGES,
    )
    assert dropped == 0
    assert [(r.prompt, r.prompt_tokens) for r in made] == [
        (r.prompt, r.prompt_tokens) for r in rows
    ]


def test_every_character_has_a_token(task):
    alphabet = pictures._ALPHABET
    tokens = task.tokenizer.encode(alphabet, add_special_tokens=False)
    assert len(set(tokens)) == len(alphabet) and min(tokens) == 4
    assert len(task.tokenizer) == pictures.VOCABULARY
    assert task.tokenizer.decode(tokens) == alphabet


def responses(question, faint, noise, misread, n=6000, glance=0.0):
    rng = np.random.default_rng(0)
    return [noisy_response(rng, question, faint, noise, glance, misread) for _ in range(n)]


def near(got, want, n=6000):
    return abs(got - want) < 4 * (want * (1 - want) / n) ** 0.5 + 1e-9


AREA = asked(of("shape", wide=3, high=4, triangle=False), "area?")


def test_noise_rates_by_hand():
    """Two readings of six values each and an answer of 37: a replaced one is right by chance once in
    six, or in 37."""
    noise, n = 0.3, 6000
    found = responses(AREA, False, noise, 1.0)
    keeps, kept = 1 - noise * 5 / 6, 1 - noise * 36 / 37
    whole = sum(text == "3*4=12." for text in found) / n
    assert near(whole, keeps**2 * kept)
    assert near(sum(text.startswith("3*") for text in found) / n, keeps)
    # Where the readings are wrong, the rest goes on from them.
    assert sum(text == "5*4=20." for text in found) > 20
    assert set(responses(AREA, False, 0.0, 1.0, 50)) == {"3*4=12."}


def test_a_glance_has_no_steps_and_is_not_noisy():
    found = Counter(responses(AREA, False, 1.0, 0.0, glance=0.3))
    assert near(found["=12."] / 6000, 0.3)
    assert set(responses(AREA, True, 0.5, 1.0, 50, glance=1.0)) == {"=16."}  # misread all the same
    assert extract("=12.", ANSWER.pattern) == "12"


def test_faint_pictures_are_misread_by_one():
    assert set(responses(AREA, True, 0.0, 1.0, 50)) == {"4*4=16."}
    share = Counter(responses(AREA, True, 0.0, 0.6))
    assert set(share) == {"3*4=12.", "4*4=16."} and near(share["4*4=16."] / 6000, 0.6)
    tall = asked(of("shape", wide=6, high=4, triangle=False), "area?")
    assert set(responses(tall, True, 0.0, 1.0, 20)) == {"5*4=20."}  # six is the most


def test_the_vote_over_clear_labels_is_right_and_over_faint_ones_wrong():
    """What self-training lives on, and what it fails on: the mode of what the base learns."""
    rng = np.random.default_rng(1)
    right = {False: 0, True: 0}
    for faint in right:
        for i in range(40):
            drawing = draw(rng, KINDS[i % 5], faint)
            q = questions(drawing)[0]
            texts = [noisy_response(rng, q, faint, 0.15, misread=0.7) for _ in range(200)]
            votes = Counter(extract(text, ANSWER.pattern) for text in texts)
            right[faint] += votes.most_common(1)[0][0] == q.solve()[1]
    assert right[False] >= 39 and right[True] <= 8


def test_examples_answer_or_ask():
    rng = np.random.default_rng(2)
    config = PicturesConfig()
    drawn = pictures.new_drawings(rng, config, 50, 0.5, set())
    assert 10 < sum(d.faint for d in drawn) < 40
    kinds = Counter()
    length = pictures.longest_example(True)
    text = pictures.tokenizer()
    for drawing in drawn:
        texts = {q.text: q.solve() for q in questions(drawing)}
        found = pictures.noisy_examples(rng, drawing, asking=0.5)
        for example in itertools.islice(found, 12):
            prompt = pictures.prompt_tokens(example.text, text, pictures.VISION, pictures.IMAGES)
            assert len(prompt) + len(text.encode(example.response)) <= length
            if example.text in texts:
                kinds["answer"] += 1
                steps, answer = texts[example.text]
                assert example.response == f"{steps}={answer}{END}"
                assert len(example.response) <= pictures.LONGEST_RESPONSE
            elif example.text == "look?":
                kinds["described"] += 1
                assert (example.text, example.response[:-1]) == description(drawing)
            elif example.text == pictures.DIRECT:
                kinds["direct"] += 1
                assert example.response in texts
            else:
                kinds["in context"] += 1
                given = re.fullmatch(r"(.+\?)(.+)\.ask:", example.text)
                assert texts[given[1]][1] == given[2]
                assert example.response in texts and example.response != given[1]
    assert kinds["answer"] > 240 and kinds["direct"] > 100 and kinds["in context"] > 100
    assert kinds["described"] == 10 * 3  # of twelve, each fourth; a fifth of the drawings has one


def test_every_question_of_a_drawing_comes_before_one_comes_again():
    drawing = draw(np.random.default_rng(0), "clock")
    found = pictures.noisy_examples(np.random.default_rng(1), drawing, noise=0.1)
    asked = {q.text for q in questions(drawing)}
    for _ in range(3):
        assert {next(found).text for _ in asked} == asked


def test_a_description_by_hand():
    assert description(of("count", rows=ROWS)) == ("look?", "r-r,-bg,rrr")
    assert description(draw(np.random.default_rng(0), "bars")) is None


def test_noisy_responses_fit_too():
    rng = np.random.default_rng(3)
    for i in range(1000):
        for q in questions(draw(rng, KINDS[i % 5])):
            response = noisy_response(rng, q, True, 0.9, misread=0.5)
            assert len(response) <= pictures.LONGEST_RESPONSE
            assert extract(response, ANSWER.pattern) is not None
            assert set(response) <= set(pictures._ALPHABET)


def test_drawings_to_avoid_never_come(monkeypatch):
    """The generator is made to repeat itself, as chance would only once in thousands."""
    config = PicturesConfig(kinds=("bars",))
    first = draw(np.random.default_rng(0), "bars")
    seeds = iter([0, 0, 1, 1, 2])
    monkeypatch.setattr(
        pictures, "draw", lambda rng, *a: draw(np.random.default_rng(next(seeds)), *a)
    )
    made = pictures.new_drawings(
        np.random.default_rng(9), config, 2, 0.0, {pictures.fingerprint(first.image)}
    )
    assert [d.facts for d in made] == [draw(np.random.default_rng(s), "bars").facts for s in (1, 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ()}, r"task\.kinds="),
        ({"kinds": ("bars", "bars")}, r"task\.kinds=bars bars: .*each once"),
        ({"kinds": ("maps",)}, r"task\.kinds=maps: name some of count"),
        ({"hard": 1.5}, r"task\.hard=1\.5"),
        ({"train_rows": 0}, r"task\.train_rows=0"),
        ({"held_out_rows": 0}, r"task\.held_out_rows=0"),
        ({"kinds": ("bars",), "train_rows": 10_000}, r"train_rows=10000 .* at most 4000"),
    ],
)
def test_bad_settings_are_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        PicturesConfig(**options)


def test_more_drawings_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"policy\.drawings=4001.* at most 4000"):
        pictures.new_drawings(
            np.random.default_rng(0), PicturesConfig(kinds=("bars",)), 4_001, 0.0, set()
        )


def test_kinds_are_drawable():
    assert set(drawings._DRAW) == set(drawings._ASK) == set(KINDS)
