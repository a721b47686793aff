"""Data sets with images: every way to hold them, every bad one, and the held-out split."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.dataset import DataConfig, load_task
from tests.seeing import IMAGE, IMAGES, VISION, png, tokenizer


@pytest.fixture(scope="module")
def text():
    return tokenizer()


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(datasets_config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


FILES = [png(8 * (i + 1), 8, seed=i) for i in range(3)]


def load(path, text, **options):
    options = {"image_column": "images", "chat": True, "held_out_fraction": 0.0} | options
    return load_task(DataConfig(str(path), **options), text, vision=VISION, images=IMAGES)


def jsonl(path, values, question="q"):
    records = [
        {"question": f"{question}{i}", "answer": "a"} | ({} if v is ... else {"images": v})
        for i, v in enumerate(values)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "p").mkdir()
    for i, file in enumerate(FILES):
        (tmp_path / "p" / f"{i}.png").write_bytes(file)
    return tmp_path


def test_paths_start_at_the_data_file_and_rows_of_text_may_be_among_them(
    pictures, text, monkeypatch
):
    values = ["p/0.png", ["p/1.png", str(pictures / "p" / "2.png")], None, "", [], ...]
    values.append({"path": "p/0.png"})
    path = jsonl(pictures / "d.jsonl", values)
    (pictures / "elsewhere").mkdir()
    monkeypatch.chdir(pictures / "elsewhere")
    for name in (path, "../d.jsonl"):
        task = load(name, text)
        tokens = [r.prompt_tokens.count(IMAGE) for r in task.train]
        assert tokens == [1, 2 + 3, 0, 0, 0, 0, 1]
        assert all(isinstance(i, str) for r in task.train for i in r.images)
        assert task.images == IMAGES
    absolute = load(path, text).train[1].images
    assert absolute == (str(pictures / "p" / "1.png"), str(pictures / "p" / "2.png"))


def test_parquet_holds_files_as_bytes_and_as_structs(pictures, text):
    for values in (FILES, [{"bytes": f, "path": None} for f in FILES]):
        records = [
            {"question": f"q{i}", "answer": "a", "images": v} for i, v in enumerate([*values, None])
        ]
        pq.write_table(pa.Table.from_pylist(records), pictures / "d.parquet", row_group_size=2)
        task = load(pictures / "d.parquet", text)
        assert [r.images for r in task.train] == [*((f,) for f in FILES), ()]
        assert [r.prompt_tokens.count(IMAGE) for r in task.train] == [1, 2, 3, 0]
    structs = [{"bytes": None, "path": "p/1.png"}, {"bytes": FILES[2], "path": "nowhere.png"}]
    records = [{"question": "<image><image>", "answer": "a", "images": structs}]
    pq.write_table(pa.Table.from_pylist(records), pictures / "d.parquet")
    (row,) = load(pictures / "d.parquet", text).train
    assert row.images == (str(pictures / "p" / "1.png"), FILES[2])


@pytest.mark.parametrize("several", [False, True])
def test_the_image_columns_of_datasets_are_read_as_stored(pictures, text, several):
    """Not decoded and encoded again: a JPEG would not be the same."""
    image = datasets.Image()
    values = [
        [{"bytes": f, "path": None}] if several else {"bytes": f, "path": None} for f in FILES
    ]
    data = datasets.Dataset.from_dict(
        {"question": ["q0", "q1", "q2"], "answer": ["a"] * 3, "images": values},
        features=datasets.Features(
            question=datasets.Value("string"),
            answer=datasets.Value("string"),
            images=datasets.List(image) if several else image,
        ),
    )
    data.save_to_disk(pictures / "saved")
    assert [r.images for r in load(pictures / "saved", text).train] == [(f,) for f in FILES]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "'images' has 7, neither a path nor"),
        (["p/0.png", None], "'images' has None, neither a path nor"),
        (["p/0.png", ""], "'images' has '', neither a path nor"),
        ([["p/0.png"]], r"'images' has \['p/0.png'\], neither"),
        ({"bytes": None, "path": None}, 'with neither "bytes" nor'),
        ({"url": "x"}, 'with neither "bytes" nor'),
        ({"bytes": "iVBORw0K", "path": None}, 'with neither "bytes" nor'),
        ("https://example.org/x.png", "not the path of a file"),
        ("data:image/png;base64,iVBORw0K", "not the path of a file"),
        ("iVBORw0K" * 1000, "not the path of a file"),
        ("p/9.png", r"p/9\.png does not exist"),
        ("d.jsonl", "is not an image"),
        (["p/0.png", "p/1.png"], r"marks 1 place\(s\) with <image> for 2 image"),
        (None, r"marks 1 place\(s\) with <image> for 0 image"),
    ],
)
def test_a_bad_image_is_refused_by_file_row_and_reason(pictures, text, value, reason):
    path = jsonl(pictures / "d.jsonl", ["p/0.png", value], question="<image> q")
    with pytest.raises(UserError, match=rf"d\.jsonl, line 2: .*{reason}") as caught:
        load(path, text)
    assert len(str(caught.value)) < 400
    # The row before it is sound.
    assert len(load(path, text, limit=1).train) == 1


def test_a_bad_image_of_the_held_out_file_is_named_by_that_file(pictures, text):
    train = jsonl(pictures / "a.jsonl", ["p/0.png", "p/1.png"])
    held_out = jsonl(pictures / "b.jsonl", ["p/2.png", "p/9.png"], question="other")
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: image .*9\.png does not exist"):
        load(train, text, held_out_path=str(held_out))


def test_a_hub_data_set_has_no_folder_for_paths(text, monkeypatch):
    data = datasets.Dataset.from_list([{"question": "q", "answer": "a", "images": "x.png"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    with pytest.raises(UserError, match=r"org/d \(train\), row 0: 'images' is 'x.png', and a data"):
        load("org/d", text)


def test_a_mistyped_image_column_is_refused(pictures, text):
    path = jsonl(pictures / "d.jsonl", ["p/0.png", ...])
    with pytest.raises(UserError, match=r"no row has a column 'image'; fix: --task\.image-column"):
        load(path, text, image_column="image")
    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": "a"}]), pictures / "d.parquet")
    with pytest.raises(UserError, match=r"no column 'images'; there are: question, answer"):
        load(pictures / "d.parquet", text)


def test_a_question_about_another_picture_is_another_problem(pictures, text):
    """The picture's bytes count, under whatever name or in whatever column they come."""
    (pictures / "copy.png").write_bytes(FILES[0])
    train = pictures / "a.jsonl"
    train.write_text(
        "".join(
            json.dumps({"question": "What is it?", "answer": "a", "images": i}) + "\n"
            for i in ("p/0.png", "p/1.png", None, ["p/0.png", "p/1.png"])
        )
    )
    records = [{"question": "What  is it?", "answer": "a", "images": FILES[0]}]
    records += [{"question": "What is it?", "answer": "a", "images": FILES[2]}]
    pq.write_table(pa.Table.from_pylist(records), pictures / "b.parquet")
    task = load(train, text, held_out_path=str(pictures / "b.parquet"))
    assert [r.id for r in task.train] == [1, 2, 3] and task.counts["also_in_held_out"] == 1
    copies = pictures / "c.jsonl"
    copies.write_text(
        "".join(
            json.dumps({"question": "What is it?", "answer": "a", "images": i}) + "\n"
            for i in ("p/0.png", "copy.png", "p/1.png", "p/2.png")
        )
    )
    for seed in range(8):
        split = load(copies, text, held_out_fraction=0.5, held_out_seed=seed)
        held_out = {r.id for r in split.held_out}
        assert held_out in ({0, 1}, {2, 3})


def test_a_policy_of_text_refuses_a_data_set_with_images(pictures, text):
    path = jsonl(pictures / "d.jsonl", [None, "p/0.png"])
    config = DataConfig(str(path), image_column="images", chat=True, held_out_fraction=0.0)
    with pytest.raises(UserError, match=r"d\.jsonl, line 2: it has 1 image\(s\), .*text only"):
        load_task(config, text)
    rows = load_task(DataConfig(str(path), chat=True, held_out_fraction=0.0), text).train
    assert [r.images for r in rows] == [(), ()]
