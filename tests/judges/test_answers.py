import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"first \boxed{5}, no: \boxed{6}.", "6"),
        (r"\boxed{\frac{1}{2}} {unrelated}", r"\frac{1}{2}"),
        (r"\boxed {  7 }", "7"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed{5} and then \boxed{\frac{1}{2}", "5"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"\boxed{a + \boxed{b}}", "b"),
        (r"} stray \boxed{5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{1 \\ 2 \\}", r"1 \\ 2 \\"),
        (r"x \\\boxed{3}", "3"),
        (r"\\boxed{3}", "3"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"\boxed{}", None),
        ("\\boxed{ \n }", None),
        (r"\boxed{5} \boxed{}", None),
        ("", None),
        ("5", None),
    ],
)
def test_the_last_balanced_box(text, answer):
    assert extract(text, "boxed") == answer


braces = st.recursive(
    st.text("ab1 +", max_size=4),
    lambda inner: st.lists(inner.map(lambda s: "{" + s + "}") | inner, max_size=3).map("".join),
    max_leaves=6,
)


@given(before=st.text("ab{}\\ ", max_size=20), content=braces, after=st.text("ab} ", max_size=10))
def test_balanced_content_comes_back_whole_whatever_surrounds_it(before, content, after):
    assert extract(f"{before} \\boxed{{{content}}}{after}", "boxed") == (content.strip() or None)


def test_thousands_of_unclosed_boxes_are_read_in_one_pass():
    # Scanning on from each box would be 2e10 steps: hours, not a slow test.
    assert extract("\\boxed{7}" + "\\boxed{" * 200_000, "boxed") == "7"


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"####\s*(\S+)", "#### 3\n#### 4", "4"),
        (r"\d+", "12 and 13", "13"),
        (r"answer:(.*)", "answer:  42  \n", "42"),
        (r"answer:(.*)", "answer: 42\nanswer:   ", None),
        (r"answer:(.*)", "none", None),
        (r"(\d+)=(\d+)", "1=2 3=4", "3"),
        (r"x|(\d+)", "5 x", None),
    ],
)
def test_a_pattern_reads_the_last_match(pattern, text, answer):
    assert extract(text, pattern) == answer


def test_a_bad_pattern_is_named():
    with pytest.raises(UserError, match=r"'\(\\\\d'"):
        extract("5", r"(\d")
