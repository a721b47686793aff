"""Pictures in the page, as bytes and as pixels, and MM-UPT's gains beside those of its paper."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from selfevolve_jax import run_dir, step_log
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.mm_upt import published
from selfevolve_jax.report import write_report
from selfevolve_jax.resample import Judged
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.base import Row
from tests.report.test_report import HOSTILE, ROOT, make_arm, make_run, page_of, sample_row

SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
RNG = np.random.default_rng(0)


def file_of(width, height, kind="PNG", **options):
    """The bytes of a picture of random pixels."""
    pixels = RNG.integers(256, size=(height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def row_of(number, *images, prompt="count red?"):
    return Row(number, SHOWN * len(images) + prompt, (1, 2), "5", {}, images)


def judged(rows):
    """One sample of one token for each row, right everywhere."""
    ones, n = np.ones((len(rows), 1)), len(rows)
    samples = Samples(
        np.ones((n, 1, 1), np.int32),
        np.zeros((n, 1, 1), np.float32),
        ones.astype(np.int32),
        ones.astype(bool),
    )
    votes = [{"5": 1}] * n
    verdict = Verdict(ones, ones.astype(bool), [["5"]] * n, ["5"] * n, votes, np.ones(n))
    return Judged(rows, samples, [["2+3=5."]] * n, verdict)


def logged(folder, rows, step=1, dropped=None):
    """A run whose trainer has logged one step of these rows."""
    arm = folder if (folder / "config.json").exists() else make_arm(folder, {1: {"reward/mean": 1}})
    records = step_log.sample_records(step, judged(rows), judged(dropped) if dropped else None)
    run_dir.write_samples(arm, step, step_log.with_pictures(records, rows, arm))
    return arm


def records_of(arm, step=1):
    return run_dir.read_samples(run_dir.sample_steps(arm)[step])


def shown(arm):
    """(the page of a report about the run, the attributes of each picture in it, in order)."""
    path, found = write_report([arm]), []

    class Pictures(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "img":
                found.append(dict(attrs))

    Pictures().feed(path.read_text(encoding="utf-8"))
    return page_of(path), found


def decoded(image):
    found = re.fullmatch(r"data:image/(\w+);base64,(.*)", image["src"])
    assert found
    return found[1], base64.b64decode(found[2], validate=True)


# -- what a step leaves on disk


def test_the_first_rows_of_a_step_keep_their_pictures_and_no_others_do(tmp_path):
    files = [file_of(8, 8) for _ in range(4)]
    rows = [row_of(0, files[0], files[1]), row_of(1, files[0]), row_of(2, files[2])]
    arm = logged(tmp_path / "r", rows, dropped=[row_of(3, files[3])])
    first, second, *others = records_of(arm)
    assert [(arm / name).read_bytes() for name in first["images"]] == files[:2]
    assert second["images"] == first["images"][:1]  # one picture, one file
    assert len(others) == 2 and not any("images" in record for record in others)
    assert others[1]["dropped"]
    assert sorted(p.name for p in (arm / "images").iterdir()) == sorted(
        os.path.basename(name) for name in first["images"]
    )


def test_records_of_rows_without_pictures_are_as_they_were(tmp_path):
    rows = [row_of(0), row_of(1)]
    records = step_log.sample_records(1, judged(rows))
    assert step_log.with_pictures(records, rows, tmp_path) == records
    assert list(tmp_path.iterdir()) == []
    assert not any("images" in record for record in records)


def test_a_picture_is_written_once_and_named_by_what_it_is(tmp_path, monkeypatch):
    jpeg = file_of(8, 8, "JPEG")
    name = run_dir.keep_image(tmp_path, jpeg)
    assert re.fullmatch(r"images/[0-9a-f]{16}\.jpeg", name)
    monkeypatch.setattr(run_dir, "write_bytes_atomic", None)  # a second write would fail
    assert run_dir.keep_image(tmp_path, jpeg) == name
    assert (tmp_path / name).read_bytes() == jpeg


def test_a_picture_that_is_a_file_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_dir.keep_image(tmp_path / "r", "a/b.png") == f"{tmp_path}/a/b.png"
    assert run_dir.keep_image(tmp_path / "r", "gs://bucket/b.png") == "gs://bucket/b.png"
    assert list(tmp_path.iterdir()) == []


# -- the page


def test_a_tiny_picture_is_in_the_page_to_the_byte_and_enlarged_without_a_blur(tmp_path):
    file = file_of(48, 32)
    page, (image,) = shown(logged(tmp_path / "r", [row_of(0, file)]))
    assert decoded(image) == ("png", file)
    assert (image["width"], image["height"], image["class"]) == ("192", "128", "tiny")
    assert image["alt"].startswith("picture 1 of 1, images/")
    assert "image-rendering: pixelated" in page.text
    assert "vision_start" not in page.text and "image_pad" not in page.text
    assert "count red?" in page.text and "true answer" in page.text


def test_the_pictures_task_is_shown(tmp_path):
    """Its own rows, so that a change of its markers or of its files is met."""
    task = pictures.load_task(pictures.PicturesConfig(train_rows=5, held_out_rows=1), 0)
    page, images = shown(logged(tmp_path / "r", task.train))
    files = [row.images[0] for row in task.train[: run_dir.ROWS_SHOWN]]
    assert [decoded(image)[1] for image in images] == files
    assert not any(token in page.text for token in ("vision_start", "image_pad", "vision_end"))
    for row in task.train[: run_dir.ROWS_SHOWN]:
        assert row.prompt.removeprefix(pictures.SHOWN) in page.text


@pytest.mark.parametrize(("kind", "becomes"), [("PNG", "png"), ("JPEG", "jpeg"), ("TIFF", "png")])
def test_a_large_picture_is_a_thumbnail(tmp_path, kind, becomes):
    whole = Image.new("RGB", (1600, 800), (255, 0, 0))
    whole.paste((0, 0, 255), (800, 0, 1600, 800))
    file = io.BytesIO()
    whole.save(file, kind)
    _, (image,) = shown(logged(tmp_path / "r", [row_of(0, file.getvalue())]))
    assert (image["width"], image["height"]) == ("320", "160") and "class" not in image
    assert decoded(image)[0] == becomes
    thumbnail = Image.open(io.BytesIO(decoded(image)[1]))
    assert thumbnail.size == (320, 160) and thumbnail.format == becomes.upper()
    pixels = np.asarray(thumbnail.convert("RGB"), int)
    assert np.abs(pixels[:, :150] - (255, 0, 0)).max() < 8
    assert np.abs(pixels[:, 170:] - (0, 0, 255)).max() < 8


def test_small_pictures_of_many_bytes_are_made_smaller(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("note", "x" * (1 << 19))
    file = file_of(8, 8, pnginfo=info)
    _, (image,) = shown(logged(tmp_path / "r", [row_of(0, file)]))
    small = decoded(image)[1]
    assert len(small) < 1000 < len(file)
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (small, file))
    np.testing.assert_array_equal(a, b)


def test_a_picture_that_lies_on_its_side_stands_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    file = file_of(1000, 500, "JPEG", exif=exif)
    _, (image,) = shown(logged(tmp_path / "r", [row_of(0, file)]))
    assert (image["width"], image["height"]) == ("160", "320")
    assert Image.open(io.BytesIO(decoded(image)[1])).size == (160, 320)


def test_several_pictures_are_numbered_in_the_prompt(tmp_path):
    files = [file_of(8, 8) for _ in range(6)]
    row = Row(0, f"is {SHOWN} like {SHOWN}?" + SHOWN * 4, (1,), "5", {}, tuple(files))
    page, images = shown(logged(tmp_path / "r", [row]))
    assert "is [picture 1] like [picture 2]?[picture 3][picture 4]" in page.text
    assert [decoded(image)[1] for image in images] == files[:4]
    assert images[3]["alt"].startswith("picture 4 of 6, ")
    assert "and 2 more pictures" in page.text


def test_a_run_of_text_has_no_picture_and_keeps_its_prompts(tmp_path):
    samples = {1: [sample_row(1, f"what is {SHOWN}?"), sample_row(1)]}
    page = page_of(write_report([make_arm(tmp_path / "r", {1: {"reward/mean": 1}}, None, samples)]))
    assert "img" not in page.tags and "picture 1" not in page.text
    assert ("div", "class", "pictures") not in page.attributes
    assert f"what is {SHOWN}?" in page.text


def test_files_that_are_gone_or_damaged_are_told_in_their_place(tmp_path):
    whole, gone, cut, there = file_of(64, 64), file_of(8, 8), file_of(40, 40), file_of(9, 9)
    (tmp_path / "own.png").write_bytes(there)
    arm = logged(
        tmp_path / "r", [row_of(0, whole, gone, cut), row_of(1, str(tmp_path / "own.png"))]
    )
    names = records_of(arm)[0]["images"]
    (arm / names[1]).unlink()
    (arm / names[2]).write_bytes(cut[:200])
    page, images = shown(arm)
    assert [decoded(image)[1] for image in images] == [whole, there]
    assert f"picture 2 of 3, {names[1]}: there is no such file now." in page.text
    assert re.search(rf"picture 3 of 3, {names[2]}: image of 200 bytes is damaged", page.text)
    (tmp_path / "own.png").unlink()
    page = page_of(write_report([arm]))
    assert f"picture 1 of 1, {tmp_path}/own.png: there is no such file now." in page.text


NAME = "\"><script>alert('x')<!--.png"


@pytest.mark.parametrize("there", [True, False])
def test_a_hostile_path_stays_text(tmp_path, there):
    if there:
        (tmp_path / NAME).write_bytes(file_of(8, 8))
    path = str(tmp_path / NAME)
    page, images = shown(logged(tmp_path / "r", [row_of(0, path)]))
    assert not {"script", "i"} & set(page.tags) and page.tags.count("img") == there
    if there:
        assert images[0]["alt"] == f"picture 1 of 1, {path}"
        assert images[0].keys() == {"class", "src", "alt", "width", "height"}
    else:
        assert f"picture 1 of 1, {path}: there is no such file now." in page.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nul\x00.png", "it cannot be read"),
        ("..", "it cannot be read (Is a directory)"),
        ("\ud800.png", "it cannot be read"),
        ("https://example.org/a.png", "it cannot be read"),
        ("config.json", "is not an image that Pillow can read"),
        ("x" * 5000, "it cannot be read (File name too long)"),
    ],
)
def test_paths_that_are_none_are_told(tmp_path, name, says):
    row = sample_row(1, f"{SHOWN}1+1=", images=[name])
    page = page_of(write_report([make_arm(tmp_path / "r", {1: {"a": 1}}, None, {1: [row]})]))
    assert "img" not in page.tags and says in page.text and len(page.text) < 30_000


def test_a_hostile_question_about_a_picture_stays_text(tmp_path):
    row = row_of(0, file_of(8, 8), prompt=HOSTILE)
    page = page_of(write_report([logged(tmp_path / "r", [row])]))
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert "<script>alert('x')</script> </pre></table>{{ 7*7 }} &lt; ��[31m � $x^2$" in page.text


@pytest.mark.parametrize("images", ["images/a.png", [3], {"0": "a.png"}])
def test_damaged_names_of_pictures_are_named(tmp_path, images):
    samples = {1: [sample_row(1, images=images)]}
    arm = make_arm(tmp_path / "r", {1: {"reward/mean": 1}}, None, samples)
    with pytest.raises(UserError, match=r"step_000001\.jsonl line 1 is damaged.*images"):
        write_report([arm])


def test_the_same_run_gives_the_same_bytes(tmp_path):
    """A run that was copied, too: what it kept goes with it."""
    rows = [row_of(0, file_of(48, 48)), row_of(1, file_of(900, 700, "JPEG"))]
    arm = logged(tmp_path / "r", rows)
    first = write_report([arm]).read_bytes()
    assert write_report([arm]).read_bytes() == first
    shutil.copytree(arm, tmp_path / "s")
    shutil.rmtree(arm)
    again = write_report([tmp_path / "s"]).read_text(encoding="utf-8")
    assert re.findall("<img.*>", again) == re.findall("<img.*>", first.decode())
    assert again.count("<img") == 2


# -- the paper's table

HEADING = "The paper’s table beside what was measured"


def gains_of(page):
    """Arm -> the cells after its name, of the paper's table."""
    start = next(i for i, row in enumerate(page.rows) if row[:2] == ["Arm", "measured here"])
    rows = [[cell.strip() for cell in row] for row in page.rows[start + 1 :]]
    assert rows[0] == ["Geometry3K", "GeoQA", "MMR1"]
    end = next(i for i, row in enumerate(rows[1:], 1) if len(row) != 5)
    return {row[0]: row[1:] for row in rows[1:end]}


def test_the_gains_by_hand(tmp_path):
    means = {"mm_upt": [0.5, 0.75], "filter": [0.5, 0.625], "random": [0.5, 0.375]}
    page = page_of(write_report([make_run(tmp_path / "q", means)]))
    assert HEADING in page.headings and "its base has 49.47" in page.text
    assert "only the sign and the order of the gains can be compared" in page.text
    # 51.23 - 49.47, 51.97 - 49.47, 53.17 - 49.47 and so on
    assert gains_of(page) == {
        "mm_upt": ["+25.0", "+1.7651.23", "+2.5051.97", "+3.7053.17"],
        "filter": ["+12.5", "–", "–", "–"],
        "random": ["-12.5", "–", "–", "–"],
        "supervised": ["not run", "+3.7553.22", "+2.1851.65", "+3.7053.17"],
        "direct": ["not run", "+2.8552.32", "+3.2052.67", "+2.6952.16"],
        "in_context": ["not run", "+1.5351.00", "+2.7352.20", "+3.4752.94"],
    }


def test_seeds_are_averaged_and_their_range_is_told(tmp_path):
    for seed, after in enumerate((0.5, 0.75)):
        means = {"mm_upt": [0.25, after], "direct": [0.25, 0.5]}
        make_run(tmp_path / str(seed), means, {"seed": seed})
    page = page_of(write_report([tmp_path / "0", tmp_path / "1"], tmp_path / "r.html"))
    gains = gains_of(page)
    assert gains["mm_upt2 runs"][0] == "+37.5+25.0 to +50.0"
    assert gains["direct2 runs"][:2] == ["+25.0+25.0 to +25.0", "+2.8552.32"]
    assert "in_context" in gains and "direct" not in gains and "mm_upt" not in gains


def test_a_gain_that_is_not_known_is_not_made_up(tmp_path):
    run = make_arm(tmp_path / "q" / "arms" / "mm_upt", {1: {"reward/mean": 1}})
    run_dir.create(str(tmp_path / "p"), {}, resume=False)
    os.rename(run.parent, tmp_path / "p" / "arms")
    assert gains_of(page_of(write_report([tmp_path / "p"])))["mm_upt"][0] == "–"


def test_other_systems_have_no_such_table_and_stay_out_of_it(tmp_path):
    srt = make_run(tmp_path / "srt", {"srt": [0.2, 0.4], "random": [0.2, 0.1]}, {"lr": 1})
    page = page_of(write_report([srt]))
    assert HEADING not in page.headings and "Geometry3K" not in page.text
    ours = make_run(tmp_path / "p", {"mm_upt": [0.5, 0.75], "random": [0.5, 0.25]}, {"lr": 2})
    page = page_of(write_report([srt, ours], tmp_path / "r.html"))
    gains = gains_of(page)
    assert gains["random (p)"][0] == "-25.0"
    assert "random (srt)" not in gains and "srt" not in gains


def test_the_report_needs_no_system_for_the_papers_figures():
    code = (
        "import sys, selfevolve_jax.report; "
        "print(sorted(m for m in sys.modules if m.startswith('selfevolve_jax.mm_upt')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['selfevolve_jax.mm_upt', 'selfevolve_jax.mm_upt.published']\n"


def test_every_published_arm_has_a_figure_for_each_data_set():
    for averages in published.AVERAGES.values():
        assert len(averages) == len(published.DATA_SETS)
    assert published.gains("random") == []
