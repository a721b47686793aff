"""Data sets: every kind of source, every kind of bad row, and the held-out split."""

import json
from decimal import Decimal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.paired import with_views
from selfevolve_jax.tasks.dataset import DataConfig, load_task

RECORDS = [{"question": f"What is {i}+1?", "answer": str(i + 1), "level": i % 3} for i in range(20)]


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load(char_tokenizer):
    tokenizer = char_tokenizer()
    return lambda path, **options: load_task(DataConfig(str(path), **options), tokenizer)


def jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def raw(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def by_id(task):
    return {r.id: (r.prompt, r.gold) for r in (*task.train, *task.held_out)}


EXPECTED = {i: (r["question"], r["answer"]) for i, r in enumerate(RECORDS)}


def write(kind, folder):
    if kind == "jsonl":
        return jsonl(folder / "d.jsonl", RECORDS)
    if kind == "json":
        return raw(folder / "d.json", json.dumps(RECORDS))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), folder / "d.parquet", row_group_size=7)
        return folder / "d.parquet"
    data = datasets.Dataset.from_list(RECORDS)
    if kind == "saved":
        data.save_to_disk(folder / "saved")
        return folder / "saved"
    if kind == "saved_splits":
        other = datasets.Dataset.from_list(RECORDS[:2])
        datasets.DatasetDict({"train": data, "test": other}).save_to_disk(folder / "splits")
        return folder / "splits"
    (folder / "downloaded").mkdir()
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "downloaded" / "train-0.parquet")
    return folder / "downloaded"


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "parquet", "saved", "saved_splits", "downloaded"]
)
def test_every_source_gives_the_same_rows(kind, tmp_path, load):
    task = load(write(kind, tmp_path), held_out_fraction=0.1)
    assert by_id(task) == EXPECTED
    assert (len(task.train), len(task.held_out)) == (18, 2)
    assert task.counts == {"prompt_too_long": 0}
    assert task.stop_tokens == (2,)
    # Characters, one token each, after the BOS that this tokenizer adds.
    assert all(len(row.prompt_tokens) == 1 + len(row.prompt) for row in task.train)
    few = load(write("jsonl", tmp_path), limit=5, held_out_fraction=0)
    assert by_id(few) == {i: EXPECTED[i] for i in range(5)} and not few.held_out


def test_a_hub_id_goes_through_load_dataset(load, monkeypatch):
    asked = []

    def fake(path, subset, split):
        asked.append((path, subset, split))
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    task = load("openai/gsm8k", subset="main", split="train[:20]")
    assert asked == [("openai/gsm8k", "main", "train[:20]")] and by_id(task) == EXPECTED


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach it"),
        datasets.exceptions.DatasetNotFoundError("doesn't exist on the Hub"),
        ValueError('Unknown split "train"'),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_a_hub_that_refuses_gives_the_command_to_run(load, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError) as caught:
        load("openai/gsm8k")
    assert str(error) in str(caught.value)
    assert "hf download openai/gsm8k --repo-type dataset --local-dir DIR" in str(caught.value)


@pytest.mark.parametrize("path", ["gone.jsonl", "data/gone.parquet", "./gone", "/a/b/gone", "../x"])
def test_a_missing_file_is_not_taken_for_a_hub_id(load, monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such file or directory"):
        load(path)


def test_missing_split_lists_those_there_are(tmp_path, load):
    with pytest.raises(UserError, match="no split 'validation'; there are: train, test"):
        load(write("saved_splits", tmp_path), split="validation")
    with pytest.raises(UserError, match="downloaded: cannot be loaded"):
        load(write("downloaded", tmp_path), split="validation")


def test_a_directory_without_data_is_refused(tmp_path, load):
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void: cannot be loaded"):
        load(tmp_path / "void")


def test_other_kinds_of_file_are_refused(tmp_path, load):
    with pytest.raises(UserError, match=r"d\.csv: unknown kind of file"):
        load(raw(tmp_path / "d.csv", "question,answer\n"))


GOOD = '{"question": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"question": "q", "answer": ', "invalid JSON"),
        ("[" * 100_000, "invalid JSON"),
        (b'{"question": "\xff", "answer": "a"}', "invalid JSON"),
        ('["q", "a"]', "not an object"),
        ('{"prompt": "q", "answer": "a"}', "no column 'question'; there are: prompt, answer"),
        ('{"question": "q", "gold": "a"}', "no column 'answer'; there are: question, gold"),
        ("{}", "no column 'question'; there are: none"),
        ('{"question": 7, "answer": "a"}', "'question' is 7, not a text"),
        ('{"question": null, "answer": "a"}', "'question' is None, not a text"),
        ('{"question": "  ", "answer": "a"}', "'question' is '  ', not a text"),
        ('{"question": "q", "answer": null}', "'answer' is None, not a text or a number"),
        ('{"question": "q", "answer": true}', "'answer' is True, not a text or a number"),
        ('{"question": "q", "answer": ["a"]}', r"'answer' is \['a'\], not a text or a number"),
        ('{"question": "q", "answer": NaN}', "not a finite number"),
        ('{"question": "q", "answer": -Infinity}', "not a finite number"),
        ('{"question": "q", "answer": " "}', "'answer' is empty"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, load, bad, reason):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    # A blank line is skipped and still counts, as in an editor.
    path = raw(tmp_path / "d.jsonl", b"\n".join([GOOD.encode(), b"", bad, GOOD.encode()]))
    with pytest.raises(UserError, match=rf"d\.jsonl, line 3.*{reason}"):
        load(path)
    task = load(path, limit=1, held_out_fraction=0)  # the rows before it are sound
    assert len(task.train) == 1


def test_a_bad_row_elsewhere_is_named_with_its_index(tmp_path, load):
    records = [{"question": "q", "answer": "1"}, {"question": "", "answer": "2"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.parquet, row 1: 'question' is ''"):
        load(tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.json, row 1: 'question' is ''"):
        load(raw(tmp_path / "d.json", json.dumps(records)))
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"saved \(train\), row 1: 'question' is ''"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["parquet", "saved", "downloaded", "json", "jsonl"])
def test_a_missing_column_lists_those_there_are(kind, tmp_path, load):
    expected = "no column 'problem'; there are: question, answer, level"
    with pytest.raises(UserError, match=expected):
        load(write(kind, tmp_path), question_column="problem")


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet"])
def test_an_empty_data_set_is_refused(name, tmp_path, load):
    path = raw(tmp_path / name, {"d.jsonl": "\n \n", "d.json": "[]"}.get(name, ""))
    if name == "d.parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS).slice(0, 0), path)
    with pytest.raises(UserError, match="the data set is empty"):
        load(path)


def test_broken_files_are_refused(tmp_path, load):
    with pytest.raises(UserError, match=r"d\.parquet: not a readable parquet file"):
        load(raw(tmp_path / "d.parquet", "no parquet"))
    with pytest.raises(UserError, match="one array of objects"):
        load(raw(tmp_path / "d.json", '{"question": "q", "answer": "a"}'))
    with pytest.raises(UserError, match=r"one object a line belongs in a \.jsonl"):
        load(raw(tmp_path / "e.json", f"{GOOD}\n{GOOD}\n"))


def test_byte_order_mark_and_other_line_ends(tmp_path, load):
    # U+2028 ends a line for str.splitlines, not in JSON Lines.
    text = f'{GOOD}\r\n{{"question": "a\u2028b", "answer": "c"}}\r\n'
    task = load(raw(tmp_path / "d.jsonl", "\ufeff" + text), held_out_fraction=0)
    assert by_id(task) == {0: ("q", "a"), 1: ("a\u2028b", "c")}


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (5, "5"),
        (-7, "-7"),
        (10**400, "1" + "0" * 400),
        (5.0, "5"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e20, "1" + "0" * 20),
        (100, "100"),
        (1200.0, "1200"),
        ("5.0", "5.0"),
        (" \\frac12\n", "\\frac12"),
        ("0", "0"),
    ],
)
def test_numbers_become_plain_text(tmp_path, load, value, gold):
    path = jsonl(tmp_path / "d.jsonl", [{"question": "q", "answer": value}])
    assert load(path, held_out_fraction=0).train[0].gold == gold


def test_parquet_numbers(tmp_path, load):
    table = pa.table(
        {"question": ["a", "b"], "answer": pa.array([Decimal("2.50"), Decimal("30.00")])}
    )
    pq.write_table(table, tmp_path / "d.parquet")
    assert [r.gold for r in load(tmp_path / "d.parquet", held_out_fraction=0).train] == [
        "2.5",
        "30",
    ]


def test_answer_pattern_takes_gold_out_of_a_worked_solution(tmp_path, load):
    records = [
        {"question": "a", "answer": "48/2 = 24\n#### 24"},
        {"question": "b", "answer": "#### 1\nno, wait\n#### 1,234 "},
    ]
    path = jsonl(tmp_path / "d.jsonl", records)
    options = {"answer_pattern": r"####\s*(.+)", "held_out_fraction": 0}
    assert [r.gold for r in load(path, **options).train] == ["24", "1,234"]
    options["answer_pattern"] = "[0-9]+"
    assert [r.gold for r in load(path, **options).train] == ["24", "234"]
    options["answer_pattern"] = "wait"
    with pytest.raises(UserError, match="line 1: answer_pattern='wait' finds nothing in '48/2"):
        load(path, **options)
    options["answer_pattern"] = "(x)?#"  # matches, without its group
    with pytest.raises(UserError, match=r"line 1: answer_pattern=.* finds nothing"):
        load(path, **options)


def test_unlabelled_data_needs_no_answer_column(tmp_path, load):
    path = jsonl(tmp_path / "d.jsonl", [{"question": "a"}, {"question": "b", "answer": None}])
    task = load(path, answer_column=None, held_out_fraction=0)
    assert [(r.prompt, r.gold) for r in task.train] == [("a", None), ("b", None)]


def test_gold_never_gets_into_the_prompt(tmp_path, load):
    records = [{"question": f"q{i}", "answer": f"SECRET{i}"} for i in range(10)]
    task = load(jsonl(tmp_path / "d.jsonl", records), suffix=" go", held_out_fraction=0.3)
    for row in (*task.train, *task.held_out):
        assert row.prompt == f"q{row.id} go" and row.gold == f"SECRET{row.id}"


REPHRASED = [{**r, "other": f"{i}, and one more?"} for i, r in enumerate(RECORDS)]


@pytest.mark.parametrize("kind", ["d.jsonl", "d.parquet"])
def test_the_other_wording_is_the_paired_votes_second_view(kind, tmp_path, load):
    path = tmp_path / kind
    if kind == "d.jsonl":
        jsonl(path, REPHRASED)
    else:
        pq.write_table(pa.Table.from_pylist(REPHRASED), path)
    task = load(path, rephrased_column="other", suffix=" go", held_out_fraction=0.2)
    assert (len(task.train), len(task.held_out)) == (16, 4)
    for rows in (task.train, task.held_out):
        for row, view in zip(*(with_views(rows)[i::2] for i in (0, 1)), strict=True):
            assert row.prompt == f"What is {row.id}+1? go"
            assert view.prompt == f"{row.id}, and one more? go"
            assert len(view.prompt_tokens) == 1 + len(view.prompt)
            assert (view.id, view.gold) == (row.id, EXPECTED[row.id][1])
            pair = row.extra["pair"]
            assert pair.gold is None and not pair.extra and row.hide_gold().gold is None
    plain = load(path, suffix=" go", held_out_fraction=0.2)
    assert by_id(plain) == by_id(task) and not any(row.extra for row in plain.train)


def test_a_row_is_over_long_where_either_wording_is(tmp_path, load):
    lengths = [(3, 4), (50, 4), (4, 50), (50, 50), (5, 5)]
    records = [{"question": "x" * a, "answer": 1, "other": "y" * b} for a, b in lengths]
    path = jsonl(tmp_path / "d.jsonl", records)
    options = {"rephrased_column": "other", "held_out_fraction": 0}
    task = load(path, max_prompt_tokens=10, **options)
    assert [r.id for r in task.train] == [0, 4] and task.counts["prompt_too_long"] == 3
    assert [r.prompt for r in with_views(task.train)] == ["xxx", "yyyy", "xxxxx", "yyyyy"]
    with pytest.raises(UserError, match=r"every row has one wording .* max_prompt_tokens=10"):
        load(jsonl(tmp_path / "e.jsonl", records[1:3]), max_prompt_tokens=10, **options)
    with pytest.raises(UserError, match=r"column 'other': all 1 prompts are longer"):
        load(jsonl(tmp_path / "f.jsonl", records[2:3]), max_prompt_tokens=10, **options)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "q", "answer": 1}, "no column 'other'.*--task.rephrased-column"),
        ({"question": "q", "answer": 1, "other": None}, "'other' is None, not a text"),
        ({"question": "q", "answer": 1, "other": " "}, "'other' is ' ', not a text"),
    ],
)
def test_a_missing_wording_is_named(tmp_path, load, record, said):
    path = jsonl(tmp_path / "d.jsonl", [REPHRASED[0], record])
    with pytest.raises(UserError, match=f"line 2.*{said}"):
        load(path, rephrased_column="other")


def test_the_questions_own_column_is_no_other_wording():
    with pytest.raises(UserError, match="rephrased_column='question' is the question's own"):
        DataConfig("gone.jsonl", rephrased_column="question")


def test_both_wordings_of_a_question_stay_on_one_side(tmp_path, load):
    """Sums in both orders, as rows and as wordings of each other, and one chain of three rows."""
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    rows = [(f"{a}+{b}", f"{b}+{a}") for p in pairs for a, b in (p, p[::-1])]
    rows += [("p", "q"), ("r", "q"), ("r", "s")]
    path = jsonl(tmp_path / "d.jsonl", [{"question": q, "answer": 1, "o": o} for q, o in rows])
    for seed in range(8):
        task = load(path, rephrased_column="o", held_out_fraction=0.3, held_out_seed=seed)
        sides = [
            {p for r in part for p in (r.prompt, r.extra["pair"].prompt)}
            for part in (task.train, task.held_out)
        ]
        assert not sides[0] & sides[1]
        assert len(task.held_out) in (6, 7) and len(task.train) + len(task.held_out) == 23
    # A held-out file takes both: the row that asks its question, and the one that rewords to it.
    test = jsonl(tmp_path / "t.jsonl", [{"question": "1+0", "answer": 1}])
    task = load(path, rephrased_column="o", held_out_path=str(test))
    assert task.counts["also_in_held_out"] == 2 and len(task.held_out) == 1
    assert not {"0+1", "1+0"} & {r.prompt for r in task.train}


def test_over_long_prompts_are_counted_over_both_sets(tmp_path, load):
    train = jsonl(tmp_path / "a.jsonl", [{"question": "x" * n, "answer": 1} for n in (3, 50, 4)])
    test = jsonl(tmp_path / "b.jsonl", [{"question": "y" * n, "answer": 1} for n in (60, 3)])
    task = load(train, held_out_path=str(test), max_prompt_tokens=10)
    assert [r.id for r in task.train] == [0, 2]
    # Held-out ids go on after the three rows of the training file, kept or not.
    assert [r.id for r in task.held_out] == [4]
    assert task.counts == {"prompt_too_long": 2, "also_in_held_out": 0}
    longer = jsonl(tmp_path / "c.jsonl", [{"question": "y" * n, "answer": 1} for n in (60, 13)])
    with pytest.raises(UserError, match=r"c\.jsonl: all 2 prompts .*shortest has 14 "):
        load(train, held_out_path=str(longer), max_prompt_tokens=10)


def test_questions_of_a_held_out_file_leave_the_training_set(tmp_path, load):
    train = [{"question": q, "answer": 1} for q in ("a b", "c", "d", "a  b\n", "c")]
    path = jsonl(tmp_path / "a.jsonl", train)
    test = jsonl(tmp_path / "b.jsonl", [{"question": q, "answer": 2} for q in ("a b", "e")])
    task = load(path, held_out_path=str(test))
    assert [r.prompt for r in task.train] == ["c", "d", "c"]
    assert task.counts["also_in_held_out"] == 2
    assert len({r.id for r in (*task.train, *task.held_out)}) == 5
    with pytest.raises(UserError, match="asks every question"):
        load(path, held_out_path=str(path))


@settings(max_examples=40)
@given(
    questions=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 1000),
)
def test_split_is_seeded_disjoint_complete_and_never_parts_copies(
    tmp_path_factory, char_tokenizer, questions, fraction, seed
):
    path = tmp_path_factory.getbasetemp() / "property.jsonl"
    jsonl(path, [{"question": f"q{q}", "answer": i} for i, q in enumerate(questions)])
    config = DataConfig(str(path), held_out_fraction=fraction, held_out_seed=seed)
    try:
        task = load_task(config, char_tokenizer())
    except UserError as error:
        # Nothing to divide, or every question has more copies than may be held out.
        wanted = max(1, round(fraction * len(questions)))
        smallest = min(questions.count(q) for q in questions)
        assert "cannot be split" in str(error)
        assert len(set(questions)) == 1 or smallest > wanted or wanted == len(questions)
        return
    train, held_out = [[r.id for r in part] for part in (task.train, task.held_out)]
    assert sorted(train + held_out) == list(range(len(questions)))
    assert train == sorted(train) and held_out == sorted(held_out)
    assert not {questions[i] for i in train} & {questions[i] for i in held_out}
    assert 1 <= len(held_out) <= max(1, round(fraction * len(questions)))
    if len(set(questions)) == len(questions):
        assert len(held_out) == max(1, round(fraction * len(questions)))
    again = load_task(config, char_tokenizer())
    assert [r.id for r in again.held_out] == held_out


def test_another_seed_holds_out_other_rows(tmp_path, load):
    path = jsonl(tmp_path / "d.jsonl", RECORDS)
    drawn = {
        tuple(r.id for r in load(path, held_out_fraction=0.25, held_out_seed=s).held_out)
        for s in range(6)
    }
    assert len(drawn) == 6 and all(len(d) == 5 for d in drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out_fraction": 1.0}, "held_out_fraction=1.0"),
        ({"held_out_fraction": -0.1}, "held_out_fraction=-0.1"),
        ({"held_out_seed": -1}, "held_out_seed=-1"),
        ({"limit": 0}, "limit=0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"answer_pattern": "("}, r"answer_pattern='\(' is no regular expression"),
        ({"pattern": "("}, r"pattern='\(' is no regular expression"),
        ({"answer_column": None, "answer_pattern": "x"}, "answer_pattern='x' needs answer_column"),
        ({"system": "s"}, r"system='s' needs chat.*--task\.chat$"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig("gone.jsonl", **options)


def test_chat_and_answer_options_reach_the_task(tmp_path, char_tokenizer):
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<turn>{% endfor %}"
    )
    config = DataConfig(
        str(jsonl(tmp_path / "d.jsonl", RECORDS)),
        chat=True,
        system="s",
        suffix="!",
        pattern="= (.*)",
        equivalence="exact",
    )
    task = load_task(config, char_tokenizer(template))
    assert task.train[0].prompt == f"<s>[system]s<turn>[user]{EXPECTED[task.train[0].id][0]}!<turn>"
    assert task.train[0].prompt_tokens.count(1) == 1
    assert task.stop_tokens == (2, 3)
    assert (task.answer.pattern, task.answer.equivalence) == ("= (.*)", "exact")
