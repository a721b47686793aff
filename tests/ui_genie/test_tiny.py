"""The quickstart's tokenizer gives every text back, says the same word with the same token, and writes
an action in few tokens; its base policy is named by what it was made from."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import decoder
from models.params import count
from selfevolve_jax.errors import UserError
from selfevolve_jax.lookup import with_lookup
from selfevolve_jax.state import init_params
from selfevolve_jax.ui_genie import agent, contract, exercises, tiny, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame, parse
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, keep
from tests import seeing
from tests.ui_genie import make_words

TEXT = tiny.tokenizer()
FRAME = Frame(160, 210)
PRINTABLE = "".join(map(chr, range(32, 127)))
CLICK = Action("click", "click Submit", (52, 101))
ACTIONS = (
    CLICK,
    Action("type", "type Zoe7", text="Zoe7"),
    Action("type", 'type a "b"', text='"b" <x>'),
    Action("terminate", "done", status="success"),
    Action("terminate", "done", status="failure"),
    Action("swipe", "swipe up", (80, 100), direction="up", distance="short"),
    Action("long_press", "hold", (80, 100), time=1.5),
    Action("open", "open Search", text="Search"),
    Action("system_button", "press Enter", button="Enter"),
    Action("wait", "wait", time=2.0),
)


def encode(text):
    return TEXT.encode(text, add_special_tokens=False)


def pieces(text):
    """Its tokens as they look, with the mark as ~."""
    return [token.replace(tiny._GLUE, "~") for token in TEXT.convert_ids_to_tokens(encode(text))]


def texts():
    """Characters, and words and numbers of the vocabulary among them, as pages have them."""
    word = st.sampled_from(["Zoe", "Submit", "submit", "17", "255", "256", "at", "action_desc"])
    return st.lists(st.one_of(word, st.text(PRINTABLE + "\n\t", max_size=4))).map("".join)


@given(texts())
@settings(max_examples=100)
def test_every_text_comes_back(text):
    ids = encode(text)
    assert TEXT.decode(ids, clean_up_tokenization_spaces=False) == text
    assert TEXT.unk_token_id not in ids


@given(texts())
@settings(max_examples=50)
def test_a_typed_text_comes_back_from_a_call(text):
    written = contract.candidate(Action("type", "type", text=text), "short")
    assert parse(TEXT.decode(encode(written)), FRAME) == Action("type", "type", text=text)


def test_special_tokens_are_one_each_and_come_back():
    text = "<|vision_start|><|image_pad|><|vision_end|> click Submit<|end|>"
    shown = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    assert pieces(text) == [*shown, " click", " Submit", "<|end|>"]
    assert TEXT.decode(encode(text)) == text
    assert encode("<|image_pad|>") == [tiny.IMAGE_TOKEN]


def test_words_numbers_and_characters():
    assert pieces(" Enter Briana 17") == [" Enter", " Briana", " 17"]
    assert pieces('Enter "Briana".') == ["~", " Enter", " ", '"~', " Briana", '"', "."]
    assert pieces(" Bk2 256 Tab #1") == [" ", *"Bk2", " ", *"256", " Tab", " ", "#~", " 1"]
    # A word that is part of another, or of a number, is not there.
    assert pieces(" Submits") == [" ", *"Submits"]


def test_a_word_and_a_number_are_the_same_token_wherever_they_stand():
    name, number = encode(" Briana")[0], encode(" 101")[0]
    for around in ("{}", " {} ", '"{}"', "[{},", ",{}]", "\n{}", "({})", "-{}-", "é{}é"):
        assert encode(around.format("Briana")).count(name) == 1
        assert encode(around.format("101")).count(number) == 1
    for a_text in ("Briana", "101", "xK3"):
        inside = encode(contract.candidate(Action("type", f"type {a_text}", text=a_text), "short"))
        alone = encode(f" {a_text}")
        there = [i for i in range(len(inside)) if inside[i : i + len(alone)] == alone]
        assert len(there) == 2


def test_a_click_on_the_grid_is_five_tokens():
    on_grid = replace(CLICK, coordinate=(56, 104))
    call = encode(contract.candidate(on_grid, "short"))
    assert pieces(contract.candidate(on_grid, "short"))[1:] == [
        " click",
        " Submit",
        '","~ coordinate":[~ 56,~ 104',
        "]}}</~ tool_~ call>",
    ]
    # The list of elements has name and place as the same two tokens.
    button = Element("button", "Submit", (2, 85, 102, 118))
    view = View("Click Submit", (), (SHOTS[NAMES[0]],), FRAME, (button,))
    listed = encode(contract.agent_question(view, "short")[1])
    at = [i for i in range(len(listed)) if listed[i : i + 2] == call[2:4]]
    assert len(at) == 1
    # A number that goes on is another place.
    assert pieces('","coordinate":[48,1040')[:2] == ['","~ coordinate":[~', " 48"]


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((2, 85, 102, 118), (56, 104)),  # the middle is 52, 101; 52 is as far from 48
        ((8, 8, 9, 9), (8, 8)),
        ((1, 1, 7, 8), (4, 4)),  # no multiple of 8 in it
        ((10, 10, 19, 15), (16, 12)),
        ((0, 0, 24, 8), (16, 4)),  # 8 is not in it
    ],
)
def test_a_place_is_on_the_grid_where_the_box_holds_one(box, place):
    assert Element("button", "", box).place == place


def test_a_click_beside_the_grid_is_eight_tokens():
    assert pieces(contract.candidate(CLICK, "short")) == [
        '<~ tool_~ call>{"~ name":"~ mobile_~ use","~ arguments":{"~ action":"~ click",'
        '"~ action_~ desc":"~',
        " click",
        " Submit",
        '","~ coordinate":[~',
        " 52",
        ",~",
        " 101",
        "]}}</~ tool_~ call>",
    ]


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_every_action_is_read_again_and_begins_with_its_piece(action):
    ids = encode(contract.candidate(action, "short"))
    assert parse(TEXT.decode(ids), FRAME) == action
    first, last = TEXT.convert_ids_to_tokens(ids)[0], TEXT.convert_ids_to_tokens(ids)[-1]
    assert first.replace(f"{tiny._GLUE} ", "").startswith(tiny._CALL + action.action)
    assert last.endswith("call>")
    # All that is not a value is in pieces.
    assert sum(len(token) > 9 for token in TEXT.convert_ids_to_tokens(ids)) <= 5


def test_what_is_not_in_the_alphabet_is_counted():
    assert tiny.unknown(TEXT, "Enter 12 to go!") == 0
    assert tiny.unknown(TEXT, "é♥ Zoe é") == 3
    # Not even the mark itself can be smuggled in.
    assert tiny.unknown(TEXT, f"a{tiny._GLUE} b") == 1
    assert TEXT.decode(encode("é Zoe")) == f"{tiny.UNKNOWN} Zoe"


def test_a_mark_without_a_word_leaves_nothing():
    glue = TEXT.convert_tokens_to_ids(tiny._GLUE)
    assert TEXT.decode([glue, *encode("!"), glue]) == "!"


def test_a_saved_tokenizer_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    TEXT.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    text = '<|image_pad|> Enter "Briana" Bk2, 17 é\n' + contract.candidate(CLICK, "short")
    assert again.encode(text, add_special_tokens=False) == encode(text)
    assert again.decode(encode(text)) == TEXT.decode(encode(text))
    assert again.chat_template == TEXT.chat_template


def test_words_are_what_the_pages_give():
    pytest.importorskip("playwright", reason="the extra gui is not installed")
    assert make_words.make().split() == exercises.words()


def test_the_vocabulary_is_small_and_without_twins():
    assert len(TEXT) <= 1600
    assert len(set(exercises.words())) == len(exercises.words())


def test_the_base_model_is_tiny():
    model = tiny.BaseConfig().model
    beside = count(decoder.abstract_params(model)) - model.vocab_size * model.d_model
    assert 250_000 <= beside <= 1_000_000
    # The reward model's two tokens fit too, so that it has the agent's shapes.
    assert len(TEXT) + 2 <= model.vocab_size < len(TEXT) + 2 + 64


# ---- the base policy


def test_tokens_of_a_kind_begin_alike_and_as_long_as_they_were(mesh1):
    """The cosine of two places is .7² on average, of two words or numbers .4², of others none."""
    model = tiny.BaseConfig().model
    plain = init_params(model, jax.random.key(0), mesh1)
    begun = tiny._begun(model, TEXT, 0, plain)

    def cosines(params, kind):
        rows = np.asarray(params.embed)[TEXT.convert_tokens_to_ids(kind)]
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean()

    places = [tiny._glued(f'","coordinate":[{x},{y}') for x in (0, 8, 152) for y in (0, 96, 208)]
    words = [" Click", " the", " Zoe", " 7", " 255", " submit", " magenta", " lorem"]
    marks = [" |", " :", '"', "#", "a", "Q", "<pad>"]
    for kind, before, after in ((places, 0, 0.49), (words, 0, 0.16), (marks, 0, 0)):
        assert cosines(plain, kind) == pytest.approx(before, abs=0.08)
        assert cosines(begun, kind) == pytest.approx(after, abs=0.08)
    lengths = [np.linalg.norm(params.embed, axis=1).mean() for params in (plain, begun)]
    marks = TEXT.convert_tokens_to_ids([f" {mark}" for mark in tiny._BEGIN])
    left = np.sqrt(1 - len(marks) / model.d_model)  # what tells of parts has dimensions of its own
    assert lengths[1] == pytest.approx(left * lengths[0], rel=0.02)
    looked_up = with_lookup(plain, model, marks, tiny._BACK, 0)
    np.testing.assert_array_equal(begun.layers.q, looked_up.layers.q)


def test_what_a_judgement_hangs_on_is_where_the_base_looks():
    """Of a click, and of an end after one: from the last token back to the last word of what was
    done."""
    marks = TEXT.convert_tokens_to_ids([f" {mark}" for mark in tiny._BEGIN])
    assert TEXT.unk_token_id not in marks
    done = contract.short_goal("Say it", ("click Submit",), "?")
    for text, back in (("", tiny._BACK[0]), (done, tiny._BACK[1])):
        action = contract.COMPLETED if text else replace(CLICK, coordinate=(56, 104))
        tokens = [*encode(text), *contract.candidate_tokens(TEXT, action, "short")]
        assert TEXT.decode([tokens[-1 - back]]).strip() == "Submit"


SHOTS = {keep(png): png for png in (seeing.png(160, 210, s) for s in range(3))}
NAMES = list(SHOTS)
SMALL = replace(
    tiny.BaseConfig().model,
    d_model=16,
    n_layers=3,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=16,
    mrope_sections=(2, 1, 1),
    vision=replace(tiny.VISION, d_model=16, n_layers=1, n_heads=2, d_ff=8, full_attention=(0,)),
)
CONFIG = replace(tiny.BaseConfig(), model=SMALL, steps=2, batch=8)


def demonstration(place=1, action=CLICK, shot=0):
    button = Element("button", "Submit", (2, 85, 102, 118))
    text = contract.candidate(action, "short")
    steps = (Step(NAMES[shot], (button,), text, action),)
    return Trajectory(
        f"d{place}", "click-it", 0, "Click Submit", FRAME, steps, NAMES[2], (), True, True
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "cache"))
    trajectory.write_screenshots(tmp_path / "demos", SHOTS)
    return tmp_path / "demos" / trajectory.SCREENSHOTS


def test_a_screen_is_thirty_tokens():
    view = View("Click Submit", (), (SHOTS[NAMES[0]],), FRAME)
    system, question = contract.agent_question(view, "short")
    ids = contract.tokens_of(
        TEXT, tiny.VISION, tiny.IMAGES, system, question, contract.agent_screenshots(view)
    )
    assert ids.count(tiny.IMAGE_TOKEN) == 30
    assert TEXT.unk_token_id not in ids


def test_the_base_is_made_once_and_then_cached(folder, mesh1):
    said = []
    one = tiny.get_base(CONFIG, [demonstration()], folder, 0, mesh1, said.append)
    assert "2 steps of 8 of 1 views from 1 demonstrations and of made-up screens" in said[0]
    again = tiny.get_base(CONFIG, [demonstration(place=2)], folder, 0, mesh1, said.append)
    assert "from the cache" in said[-1]
    assert one.stop_tokens == (TEXT.eos_token_id,)
    assert again.images == tiny.IMAGES
    table, same = (np.asarray(p.params.embed) for p in (one, again))
    np.testing.assert_array_equal(table, same)


def test_the_name_follows_from_what_decides_the_weights():
    name = tiny.content_hash(CONFIG, [demonstration()], 0)
    assert tiny.content_hash(CONFIG, [demonstration(place=2)], 0) == name  # only its id
    others = [
        (CONFIG, [demonstration(shot=1)], 0),
        (CONFIG, [demonstration(action=replace(CLICK, coordinate=(1, 1)))], 0),
        (CONFIG, [demonstration()] * 2, 0),
        (CONFIG, [demonstration()], 1),
        (replace(CONFIG, batch=16), [demonstration()], 0),
    ]
    assert len({name, *(tiny.content_hash(*other) for other in others)}) == 6


def test_bad_settings_say_what_to_do(folder, mesh1):
    with pytest.raises(UserError, match=r"policy\.steps=0"):
        replace(CONFIG, steps=0)
    with pytest.raises(UserError, match="image_token=4"):
        replace(CONFIG, model=replace(SMALL, vision=replace(tiny.VISION, image_token=1)))
    # Before demonstrations are played: what only the start of the training would come upon.
    for change in (
        {"n_layers": 2},
        {"d_model": 12},
        {"qkv_bias": False},
        {"tie_embeddings": False},
    ):
        (name,) = change
        with pytest.raises(UserError, match=rf"{name}={change[name]}.* look words up"):
            replace(CONFIG, model=replace(SMALL, **change))
    small = replace(CONFIG, model=replace(SMALL, vocab_size=100))
    with pytest.raises(UserError, match=f"{len(TEXT)} or more"):
        tiny.get_base(small, [demonstration()], folder, 0, mesh1, print)
    with pytest.raises(UserError, match="no demonstration has a step"):
        next(tiny._batches(CONFIG, [], tiny._task(), 0))


def test_a_screen_is_asked_about_by_name(folder):
    """What was demonstrated, then a click on each thing with a name of its own, and words to type where
    a field has the focus; everything after the goal is a branch of one row."""
    elements = (
        Element("button", "Submit", (2, 85, 102, 118)),
        Element("input", "", (10, 10, 50, 30), focused=True),
        Element("link", "a", (0, 40, 10, 50)),
        Element("link", "a", (0, 60, 10, 70)),
    )
    view = View("Say it", ("click input",), (SHOTS[NAMES[0]],), FRAME, elements)
    submit = Action("click", "click Submit", (56, 104))
    clicks = [submit, Action("click", "click input", (32, 24))]
    learnt = [agent.Example(lambda: view, (CLICK,))]
    (batch,) = tiny._batches(replace(CONFIG, steps=1, batch=1), learnt, tiny._task(), 0)
    tokens, branch = batch.tokens_BxT[0], batch.branch_ids_BxT[0]
    prompt = TEXT.decode(tokens[(branch == 0) & (batch.segment_ids_BxT[0] == 0)])
    assert prompt.endswith(
        ' link a","coordinate":[8,48 link a","coordinate":[8,64 button Submit","coordinate":[56,104 :'
    )
    first = TEXT.decode(tokens[branch == 1])
    assert first == f" Say it | click input >{contract.candidate(CLICK, 'short')}<|end|>"
    rest = [TEXT.decode(tokens[branch == k]) for k in range(2, branch.max() + 1)]
    written = [f" {a.action_desc} >{contract.candidate(a, 'short')}<|end|>" for a in clicks]
    judged = {text for text in rest if text.endswith(("<|+|>", "<|-|>"))}
    assert judged and {text for text in rest if "type " not in text} - judged <= {*written}
    by_words = {contract.candidate(a, "short"): a.action_desc for a in clicks}
    completed = contract.candidate(contract.COMPLETED, "short")
    verdicts = set()
    for text in judged:
        asked, candidate = text[:-5].split(" ?", 1)
        goal, *steps = asked.split(" | ")
        did = steps[-1] if candidate == completed else by_words.get(candidate, candidate)
        if did in by_words.values():
            right = did.split()[1] in goal.replace('"', " ").split()
            assert text.endswith("<|+|>" if right else "<|-|>")
            verdicts.add(right)
    assert verdicts
    assert len(set(rest)) == len(rest)
