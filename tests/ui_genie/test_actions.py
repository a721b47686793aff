import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import actions
from selfevolve_jax.ui_genie.actions import (
    BUTTONS,
    DIRECTIONS,
    DISTANCES,
    FIELDS,
    STATUSES,
    Action,
    Failure,
    Frame,
    as_record,
    failures,
    finger_direction,
    from_record,
    parse,
    render,
    tool_schema,
)

FRAME = Frame(160, 210)

CANONICAL = {  # written by hand: the bytes that a model is trained to write
    '<tool_call>{"name":"mobile_use","arguments":{"action":"open","text":"Clock","action_desc":"d"}}'
    "</tool_call>": Action("open", "d", text="Clock"),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"click","coordinate":[0,209],'
    '"action_desc":"d"}}</tool_call>': Action("click", "d", coordinate=(0, 209)),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"swipe","coordinate":[80,100],'
    '"direction":"up","distance":"short","action_desc":"d"}}</tool_call>': Action(
        "swipe", "d", coordinate=(80, 100), direction="up", distance="short"
    ),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"long_press","coordinate":[159,0],'
    '"time":2,"action_desc":"d"}}</tool_call>': Action(
        "long_press", "d", coordinate=(159, 0), time=2.0
    ),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"type","text":"çà \\"9\\"",'
    '"action_desc":"d"}}</tool_call>': Action("type", "d", text='çà "9"'),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"system_button","button":"Back",'
    '"action_desc":"d"}}</tool_call>': Action("system_button", "d", button="Back"),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"wait","time":0.5,"action_desc":"d"}}'
    "</tool_call>": Action("wait", "d", time=0.5),
    '<tool_call>{"name":"mobile_use","arguments":{"action":"terminate","status":"failure",'
    '"action_desc":"d"}}</tool_call>': Action("terminate", "d", status="failure"),
}


@pytest.mark.parametrize(
    "text", CANONICAL, ids=lambda text: json.loads(text[11:-12])["arguments"]["action"]
)
def test_the_canonical_text_of_each_of_the_eight_actions(text):
    assert render(CANONICAL[text]) == text
    assert parse(text, FRAME) == CANONICAL[text]


def test_whitespace_and_another_order_of_keys_are_the_same_action():
    text = (
        ' \n<tool_call>\n{"arguments": {"action_desc": "d", "coordinate": [1, 2], '
        '"action": "click"}, "name": "mobile_use"}\n</tool_call>\n'
    )
    assert parse(text, FRAME) == Action("click", "d", coordinate=(1, 2))


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["</tool_call>", "<tool_call>", "a</tool_call>b<tool_call>", "<|im_end|>", '"}}', "\\u003c"]
)
values = {
    "coordinate": st.tuples(st.integers(0, 159), st.integers(0, 209)),
    "text": texts,
    "direction": st.sampled_from(DIRECTIONS),
    "distance": st.sampled_from(DISTANCES),
    "time": st.floats(0, allow_nan=False, allow_infinity=False),
    "button": st.sampled_from(BUTTONS),
    "status": st.sampled_from(STATUSES),
}
any_action = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.builds(
        Action, st.just(name), texts, **{field: values[field] for field in FIELDS[name]}
    )
)


@given(any_action)
@settings(max_examples=200)
def test_parse_undoes_render_and_from_record_undoes_as_record(action):
    assert parse(render(action), FRAME) == action
    assert from_record(json.loads(json.dumps(as_record(action)))) == action


@given(
    st.text() | st.text(alphabet='<tool_call>/{}[]":,\\ 1e').map("<tool_call>{}</tool_call>".format)
)
@settings(max_examples=200)
def test_no_text_makes_parse_raise(text):
    assert isinstance(parse(text, FRAME), Action | Failure)


def call(arguments, **more):
    body = {"name": "mobile_use", "arguments": arguments} | more
    return f"<tool_call>{json.dumps(body, separators=(',', ':'))}</tool_call>"


def raw(arguments):
    return '<tool_call>{"name":"mobile_use","arguments":' + arguments + "}</tool_call>"


def wait(time):
    return raw('{"action":"wait","time":' + time + ',"action_desc":"d"}')


def typed(text):
    return raw('{"action":"type","text":"' + text + '","action_desc":"d"}')


CLICK = {"action": "click", "coordinate": [5, 6], "action_desc": "d"}
GOOD = call(CLICK)

BAD = {
    "empty": ("", "no_tool_call"),
    "prose": ("click the button", "no_tool_call"),
    "bare JSON": (GOOD[11:-12], "no_tool_call"),
    "cut off": (GOOD[:-4], "no_tool_call"),
    "tags the wrong way round": ("</tool_call>{}<tool_call>", "no_tool_call"),
    "two calls": (GOOD + GOOD, "several_tool_calls"),
    "two closing tags": (GOOD + "</tool_call>", "several_tool_calls"),
    "a thought before": ("I click it. " + GOOD, "text_beside_call"),
    "a word after": (GOOD + " done", "text_beside_call"),
    "nothing inside": ("<tool_call></tool_call>", "malformed_json"),
    "a brace short": (GOOD.replace("}}", "}"), "malformed_json"),
    "a second object": (GOOD.replace("}}", "}}{}"), "malformed_json"),
    "single quotes": (GOOD.replace('"', "'"), "malformed_json"),
    "a trailing comma": (GOOD.replace("}}", ",}}"), "malformed_json"),
    "NaN": (wait("NaN"), "malformed_json"),
    "minus infinity": (wait("-Infinity"), "malformed_json"),
    "a float too large": (wait("1e999"), "malformed_json"),
    "a key twice": (
        GOOD.replace('"action_desc"', '"coordinate":[5,6],"action_desc"'),
        "malformed_json",
    ),
    "a key twice outside": (
        GOOD.replace('{"name"', '{"name":"mobile_use","name"'),
        "malformed_json",
    ),
    "half a surrogate pair": (typed("\\ud800"), "malformed_json"),
    "a raw newline in a string": (typed("a\nb"), "malformed_json"),
    "nested very deep": (raw("[" * 200_000), "malformed_json"),
    "a number of very many digits": (wait("9" * 6000), "malformed_json"),
    "a list": ("<tool_call>[]</tool_call>", "ill_typed_field"),
    "no arguments": ('<tool_call>{"name":"mobile_use"}</tool_call>', "missing_field"),
    "no name": ('<tool_call>{"arguments":{}}</tool_call>', "missing_field"),
    "a third key": (call(CLICK, id=3), "unknown_field"),
    "another tool": (call(CLICK, name="computer_use"), "wrong_tool"),
    "a tool that is a number": (call(CLICK, name=3), "ill_typed_field"),
    "arguments as a string": (call(json.dumps(CLICK)), "ill_typed_field"),
    "no action": (call({"coordinate": [5, 6], "action_desc": "d"}), "missing_field"),
    "an action of computers": (call(CLICK | {"action": "left_click"}), "unknown_action"),
    "an action in capitals": (call(CLICK | {"action": "Click"}), "unknown_action"),
    "an action in a list": (call(CLICK | {"action": ["click"]}), "ill_typed_field"),
    "no action_desc": (call({"action": "click", "coordinate": [5, 6]}), "missing_field"),
    "no coordinate": (call({"action": "click", "action_desc": "d"}), "missing_field"),
    "a swipe without distance": (
        call(CLICK | {"action": "swipe", "direction": "up"}),
        "missing_field",
    ),
    "text on a click": (call(CLICK | {"text": "x"}), "unknown_field"),
    "a thought among the fields": (call(CLICK | {"thought": "x"}), "unknown_field"),
    "null": (call(CLICK | {"coordinate": None}), "ill_typed_field"),
    "three numbers": (call(CLICK | {"coordinate": [5, 6, 7]}), "ill_typed_field"),
    "one number": (call(CLICK | {"coordinate": [5]}), "ill_typed_field"),
    "a float": (call(CLICK | {"coordinate": [5.0, 6]}), "ill_typed_field"),
    "a bool": (call(CLICK | {"coordinate": [True, 6]}), "ill_typed_field"),
    "digits as strings": (call(CLICK | {"coordinate": ["5", "6"]}), "ill_typed_field"),
    "a coordinate as an object": (
        call(CLICK | {"coordinate": {"x": 5, "y": 6}}),
        "ill_typed_field",
    ),
    "a text that is a number": (
        call({"action": "type", "text": 5, "action_desc": "d"}),
        "ill_typed_field",
    ),
    "an action_desc that is a list": (call(CLICK | {"action_desc": ["d"]}), "ill_typed_field"),
    "a time that is a bool": (wait("true"), "ill_typed_field"),
    "a time before now": (wait("-1"), "ill_typed_field"),
    "a time beyond floats": (wait("1" + "0" * 400), "ill_typed_field"),
    "a button in small letters": (
        raw('{"action":"system_button","button":"back","action_desc":"d"}'),
        "ill_typed_field",
    ),
    "a status that is none": (
        raw('{"action":"terminate","status":"done","action_desc":"d"}'),
        "ill_typed_field",
    ),
    "x at the width": (call(CLICK | {"coordinate": [160, 6]}), "outside_frame"),
    "y at the height": (call(CLICK | {"coordinate": [5, 210]}), "outside_frame"),
    "x below 0": (call(CLICK | {"coordinate": [-1, 6]}), "outside_frame"),
    "x very far": (call(CLICK | {"coordinate": [10**30, 6]}), "outside_frame"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_exactly_right_is_a_named_failure(case):
    text, kind = BAD[case]
    result = parse(text, FRAME)
    assert isinstance(result, Failure) and result.kind == kind, result
    assert len(result.detail) < 300


def test_the_bad_cases_cover_every_kind_and_the_call_they_spoil_is_good():
    assert parse(GOOD, FRAME) == Action("click", "d", coordinate=(5, 6))
    assert {kind for _, kind in BAD.values()} == set(actions.FailureKind.__args__)


def kind_of(text):
    result = parse(text, FRAME)
    return result.kind if isinstance(result, Failure) else None


def test_every_field_of_every_action_is_needed_and_no_other_is_taken():
    example = {"coordinate": [5, 6], "text": "t", "direction": "up", "distance": "long", "time": 1}
    example |= {"button": "Home", "status": "success"}
    for name, fields in FIELDS.items():
        whole = {"action": name, "action_desc": "d"} | {field: example[field] for field in fields}
        assert isinstance(parse(call(whole), FRAME), Action)
        for field in whole:
            less = {key: value for key, value in whole.items() if key != field}
            assert kind_of(call(less)) == "missing_field"
        for field in example.keys() - set(fields):
            assert kind_of(call(whole | {field: example[field]})) == "unknown_field"


def test_failures_are_counted_by_kind_and_actions_are_not():
    results = [parse(text, FRAME) for text in ("", GOOD, "hm", call(CLICK, id=1), GOOD)]
    assert failures(results) == {"no_tool_call": 2, "unknown_field": 1}
    assert failures([parse(GOOD, FRAME)]) == {}


@pytest.mark.parametrize(
    "action",
    [
        Action("click", "d"),
        Action("click", "d", coordinate=(5, 6), text="x"),
        Action("swipe", "d", coordinate=(5, 6), direction="diagonal", distance="short"),
        Action("wait", "d", time=float("nan")),
        Action("jump", "d"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_ill_made_action_is_never_written_as_a_training_target(action):
    with pytest.raises(UserError, match="FIELDS"):
        render(action)


@pytest.mark.parametrize(
    "record",
    [
        {"action": "click", "action_desc": "d", "coordinate": [1]},
        {"action": "click", "coordinate": [1, 2]},
        {"action": "wait", "time": 1, "action_desc": "d", "x": 1},
        {},
    ],
)
def test_a_bad_record_is_a_user_error(record):
    with pytest.raises(UserError, match="record is wrong"):
        from_record(record)


def test_a_record_has_only_the_fields_of_its_action_and_keeps_a_point_beyond_any_frame():
    action = Action("long_press", "d", coordinate=(9000, 6), time=1.5)
    assert as_record(action) == {
        "action": "long_press",
        "coordinate": [9000, 6],
        "time": 1.5,
        "action_desc": "d",
    }
    assert list(as_record(action)) == ["action", "coordinate", "time", "action_desc"]
    assert from_record(as_record(action)) == action
    assert hash(from_record(as_record(action))) == hash(action)


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (10.0, 10), (True, 10)])
def test_a_frame_without_pixels_is_refused(size):
    with pytest.raises(UserError, match=r"frame's (width|height)"):
        Frame(*size)


def test_the_finger_goes_against_the_scroll():
    assert [finger_direction(d) for d in ("up", "down", "left", "right")] == [
        "down",
        "up",
        "right",
        "left",
    ]
    with pytest.raises(UserError, match="'forward'"):
        finger_direction("forward")


def test_the_schema_names_the_frame_and_has_exactly_what_parse_takes():
    schema = tool_schema(Frame(1092, 2436))
    function = schema["function"]
    properties = function["parameters"]["properties"]
    assert function["name"] == "mobile_use" and "1092x2436" in function["description"]
    assert "1091" in properties["coordinate"]["description"]
    assert properties["action"]["enum"] == list(FIELDS)
    assert set(properties) == {field.name for field in dataclasses.fields(Action)}
    assert function["parameters"]["required"] == ["action", "action_desc"]
    words = {"direction": DIRECTIONS, "distance": DISTANCES, "button": BUTTONS, "status": STATUSES}
    assert {name: tuple(properties[name]["enum"]) for name in words} == words
    for name, fields in FIELDS.items():
        assert f"{name}: {', '.join(fields)}" in properties["action"]["description"]
    json.dumps(schema)
