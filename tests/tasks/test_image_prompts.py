"""Prompts with images: where they stand, how many tokens they take, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.images import layout, load_image, preprocess, prompt_positions
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.prompts import Problem, render_prompt, stop_tokens, tokenize_rows
from tests.seeing import (
    IMAGE,
    IMAGES,
    TEMPLATE,
    TEXT_END,
    TURN_END,
    VISION,
    VISION_END,
    VISION_START,
    png,
    tokenizer,
)

BEFORE = "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
# (width, height) and its tokens. Units are 8 pixels wide; the area lies between 64 and 4096.
SIZES = {
    (24, 16): 6,  # 3 x 2 as it is
    (9, 17): 2,  # 1 x 2: sides round
    (12, 20): 4,  # 2 x 2: halves round to even
    (4, 4): 1,  # too small: doubled
    (100, 200): 55,  # too large: 11 x 5
}


@pytest.fixture(scope="module")
def text():
    return tokenizer()


def rows_of(text, *problems, chat=True, **options):
    options = {"vision": VISION, "images": IMAGES} | options
    return tokenize_rows(text, problems, name="d", chat=chat, **options)


def one(text, question, *images, **options):
    (row,), dropped = rows_of(text, Problem(3, question, "g", images=images), **options)
    assert dropped == 0
    return row


@pytest.mark.parametrize(
    ("question", "images", "user"),
    [
        ("What is it?", 1, SLOT + "What is it?"),
        ("Compare.", 2, SLOT + SLOT + "Compare."),
        ("Is <image> like <image>?", 2, f"Is {SLOT} like {SLOT}?"),
        ("<image>\nWhat?", 1, f"{SLOT}\nWhat?"),
        ("<image><image>", 2, SLOT + SLOT),
        ("Why?", 0, "Why?"),
    ],
)
def test_images_stand_at_their_markers_or_first(text, question, images, user):
    made = render_prompt(text, question, suffix=" Go.", chat=True, images=images)
    assert made == f"{BEFORE}{user} Go.{AFTER}"


def test_the_message_names_parts_for_the_template():
    """Not text that happens to look right: the template decides what stands for an image."""
    shows = "{% for p in messages[-1].content %}[{{ p.type }}:{{ p.text }}]{% endfor %}"
    made = render_prompt(tokenizer(shows), "a<image>b<image>", suffix="c", chat=True, images=2)
    assert made == "[text:a][image:][text:b][image:][text:c]"
    plain = tokenizer("{{ messages[-1].content is string }}")
    for images in (None, 0):
        assert render_prompt(plain, "a", chat=True, images=images) == "True"


def test_a_system_turn_comes_before_the_images(text):
    row = one(text, "a", png(8, 8), system="Be brief")
    assert row.prompt == f"<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n{SLOT}a{AFTER}"


def test_a_row_of_text_is_what_it_was(text):
    for question in ("Why?", "日本 \N{GRINNING FACE}"):
        seeing = one(text, question, suffix="!")
        plain = one(text, question, suffix="!", vision=None, images=None)
        assert seeing == plain and seeing.prompt == f"{BEFORE}{question}!{AFTER}"
        assert IMAGE not in seeing.prompt_tokens and seeing.images == ()


def test_a_policy_of_text_reads_the_marker_as_text(text):
    row = one(text, "What does <image> do in SVG?", vision=None, images=None)
    assert "What does <image> do in SVG?" in row.prompt
    assert one(text, "<image>", vision=None, images=None, chat=False).prompt == "<image>"


@pytest.mark.parametrize(("size", "tokens"), SIZES.items())
def test_an_image_takes_one_token_for_each_unit(text, size, tokens):
    row = one(text, "a", png(*size))
    assert row.prompt_tokens.count(IMAGE) == tokens
    picture = preprocess(load_image(row.images[0]), IMAGES, VISION)
    assert len(picture.patches) == tokens * VISION.merge**2


@settings(max_examples=25)
@given(
    pieces=st.lists(
        st.one_of(st.text("ab é日\n", min_size=1, max_size=5), st.sampled_from([*SIZES])),
        min_size=1,
        max_size=7,
    ).filter(lambda pieces: any(isinstance(p, str) for p in pieces))
)
def test_prompts_of_any_mixture_fit_their_images(pieces):
    """Against the text written out by hand, and the functions that will place the features."""
    text = tokenizer()
    sizes = [p for p in pieces if not isinstance(p, str)]
    files = [png(*size, seed=i) for i, size in enumerate(sizes)]
    question = "".join(p if isinstance(p, str) else "<image>" for p in pieces)
    row = one(text, question, *files)
    written = "".join(
        p if isinstance(p, str) else f"<|vision_start|>{'<|image_pad|>' * SIZES[p]}<|vision_end|>"
        for p in pieces
    )
    assert text.decode(row.prompt_tokens) == BEFORE + written + AFTER
    assert row.images == tuple(files)
    pictures = [preprocess(load_image(file), IMAGES, VISION) for file in files]
    _, (index,) = layout([pictures], [row.prompt_tokens], VISION)
    assert (index >= 0).sum() == sum(SIZES[s] for s in sizes)
    prompt_positions(row.prompt_tokens, [p.grid for p in pictures], VISION)


def test_mixed_rows_keep_their_order_and_each_its_own_images(text):
    files = [png(24, 16), png(8, 8), png(16, 16, seed=1)]
    problems = [
        Problem(0, "a", "1", images=(files[0],)),
        Problem(1, "b", "2"),
        Problem(2, "<image> c <image>", "3", images=(files[1], files[2])),
        Problem(3, "d", "4"),
    ]
    rows, dropped = rows_of(text, *problems)
    assert [(r.id, r.gold, r.images) for r in rows] == [(p.id, p.gold, p.images) for p in problems]
    assert [r.prompt_tokens.count(IMAGE) for r in rows] == [6, 0, 1 + 4, 0] and dropped == 0
    # The two of the third row, each in a frame of its own.
    runs = [t for t in rows[2].prompt_tokens if t in (VISION_START, IMAGE, VISION_END)]
    frame = lambda n: [VISION_START, *[IMAGE] * n, VISION_END]  # noqa: E731
    assert runs == frame(1) + frame(4)
    assert [r.hide_gold().images for r in rows] == [p.images for p in problems]


def test_over_long_rows_are_left_out_for_their_images_and_none_is_cut(text):
    problems = [
        Problem(i, "a", images=(png(*size),)) for i, size in enumerate([(8, 8), (100, 200)])
    ]
    short = len(rows_of(text, problems[0])[0][0].prompt_tokens)
    rows, dropped = rows_of(text, *problems, max_prompt_tokens=short + 53)
    assert [r.id for r in rows] == [0] and dropped == 1
    rows, dropped = rows_of(text, *problems, max_prompt_tokens=short + 54)
    assert [r.prompt_tokens.count(IMAGE) for r in rows] == [1, 55] and dropped == 0
    with pytest.raises(UserError, match=rf"all 2 prompts .*shortest has {short} tokens"):
        rows_of(text, *problems, max_prompt_tokens=short - 1)


@pytest.mark.parametrize(
    ("question", "images", "reason"),
    [
        ("<image> and <image>", 1, r"marks 2 place\(s\) with <image> for 1 image\(s\)"),
        ("<image>", 2, r"marks 1 place\(s\) with <image> for 2 image\(s\)"),
        ("<image> what?", 0, r"marks 1 place\(s\) with <image> for 0 image\(s\)"),
        ("a <|image_pad|>", 1, r"the text contains <\|image_pad\|>"),
        ("a <|image_pad|>", 0, r"the text contains <\|image_pad\|>"),
        (f"<image>{SLOT}", 1, r"the text contains <\|image_pad\|>"),
    ],
)
def test_text_that_does_not_match_its_images_is_refused(text, question, images, reason):
    files = tuple(png(8, 8, seed=i) for i in range(images))
    good = Problem(0, "b", images=(png(8, 8),))
    bad = Problem(1, question, images=files, where="d.jsonl, line 7")
    with pytest.raises(UserError, match=rf"^d\.jsonl, line 7: .*{reason}"):
        rows_of(text, good, bad)
    unnamed = Problem(1, question, images=files)
    with pytest.raises(UserError, match=rf"^d, row 1: .*{reason}"):
        rows_of(text, good, unnamed)


def test_a_suffix_with_the_image_token_is_refused(text):
    with pytest.raises(UserError, match=r"d, row 3: the text contains <\|image_pad\|>"):
        one(text, "a", png(8, 8), suffix=SLOT)


@pytest.mark.parametrize(
    "options", [{"vision": None}, {"images": None}, {"vision": None, "images": None}]
)
def test_a_policy_of_text_refuses_images(text, options):
    with pytest.raises(UserError, match=r"d, row 3: it has 1 image\(s\), .* reads text only"):
        one(text, "a", png(8, 8), **options)


def test_images_without_chat_are_refused(text):
    with pytest.raises(UserError, match=r"d, row 3: images need a chat template.*--task\.chat$"):
        one(text, "a", png(8, 8), chat=False)
    with pytest.raises(UserError, match=r"image_column='i' needs chat.*--task\.chat$"):
        DataConfig("gone.jsonl", image_column="i")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].content }}", r"0 image token\(s\) for 1 image"),
        (TEMPLATE.replace("<|image_pad|>", "<|image_pad|>" * 2), r"2 image token\(s\) for 1 image"),
        ("{{ '<|im_start|>' + messages[0].content }}", "takes no images"),
        ("{{ messages[0].content.strip() }}", "takes no images"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_places_no_image_is_refused(template, reason):
    with pytest.raises(UserError, match=rf"^d, row 3: .*{reason}"):
        one(tokenizer(template), "a", png(8, 8))


def test_bad_files_are_refused_by_row_and_file(text, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(png(64, 64)[:3000])
    (tmp_path / "wide.png").write_bytes(png(2010, 10))
    for image, reason in (
        (str(tmp_path / "gone.png"), r"gone\.png does not exist"),
        (str(cut), r"cut\.png is damaged or cut short"),
        (b"no image", "image of 8 bytes is not an image"),
        (b"", "image of 0 bytes is empty"),
        (str(tmp_path / "wide.png"), "more than 200 times"),
    ):
        with pytest.raises(UserError, match=rf"^d, row 3: .*{reason}"):
            one(text, "a", image)


def test_generation_ends_with_the_turn(text):
    assert stop_tokens(text, chat=True, known=(TEXT_END,)) == (TEXT_END, TURN_END)
