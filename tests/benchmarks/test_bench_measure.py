"""Turns, medians, the table and the page, on numbers worked out by hand."""

import json

import pytest

from selfevolve_jax.bench import page
from selfevolve_jax.bench.measure import Failed, Row, alternate, cells, markdown, shown
from selfevolve_jax.errors import UserError

FASTER = Row("r", "rollout", "peer", "tokens/s", 2.0, True, (10.0, 12.0, 11.0), (5.0, 8.0, 5.5))
LESS = Row("m", "memory", "itself", "GiB", 0.35, False, (2.0,), (5.0,))
ABSENT = Row("r", "rollout", "other", "tokens/s", 2.0, True, (10.0,), (), "uv is not installed")
ABOUT = {
    "processor": "P",
    "cores": 2,
    "system": "S",
    "python": "3.11",
    "versions": {"jax": "1"},
}


def test_contestants_take_turns_and_a_failed_one_is_left_out():
    order = []

    def turn(name, fails_at=None):
        def measure():
            order.append(name)
            if order.count(name) == fails_at:
                raise Failed("out of memory")
            return float(len(order))

        return measure

    found, why = alternate({"ours": turn("ours"), "a": turn("a"), "b": turn("b", 2)}, 3)
    assert order == ["ours", "a", "b", "ours", "a", "b", "ours", "a"]
    assert found == {"ours": [1, 4, 7], "a": [2, 5, 8], "b": []}
    assert why == {"b": "out of memory"}


def test_another_error_is_not_taken_for_a_peers_failure():
    def broken():
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        alternate({"ours": broken}, 1)


def test_ratio_is_of_medians_and_its_spread_of_rounds():
    assert FASTER.ratio == 11.0 / 5.5
    assert FASTER.ratio_spread == (12.0 / 8.0, 2.0)
    assert FASTER.met is True
    assert LESS.ratio == 0.4 and LESS.met is False
    assert (ABSENT.ratio, ABSENT.met) == (None, None)
    json.dumps([row.to_dict() for row in (FASTER, LESS, ABSENT)])


def test_table():
    assert shown((3.0, 1.0, 20.0)) == "3.00 (1.00–20.0)"
    assert cells(FASTER) == (
        *("rollout", "peer", "11.0 (10.0–12.0) tokens/s", "5.50 (5.00–8.00) tokens/s"),
        *("2.00 (1.50–2.00)", "≥ 2.00", "yes"),
    )
    assert cells(LESS)[4:] == ("0.40", "≤ 0.35", "no")
    assert cells(ABSENT)[4:] == ("uv is not installed", "≥ 2.00", "not measured")
    assert len(markdown([FASTER, LESS]).splitlines()) == 4


def test_page_tells_what_missed_and_what_is_missing_and_keeps_what_a_person_wrote():
    block = page.figures([FASTER, LESS, ABSENT], ABOUT, "selfevolve bench")
    assert "memory against itself is at 0.40 where the bar is 0.35" in block
    assert "rollout against peer is at" not in block
    assert "rollout against other: not measured. uv is not installed." in block
    once = page.put(f"Before.\n\n{page.BEGIN}\nold\n{page.END}\n\nAfter.\n", block, "p.md")
    assert once == f"Before.\n\n{block}\n\nAfter.\n"
    assert page.put(once, block, "p.md") == once
    assert page.put("", block, "p.md") == block + "\n"
    with pytest.raises(UserError, match=r"p\.md has no lines"):
        page.put("No marks.", block, "p.md")
