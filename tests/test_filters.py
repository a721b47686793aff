"""What each filter removes and keeps, by hand and by property."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import (
    Candidate,
    FilterConfig,
    filter_questions,
    filter_votes,
    normalised,
    unanswerable,
)
from selfevolve_jax.labels import Label

GOOD = [
    "What is the area of triangle ABC?",
    "Find the missing angle x.",
    "In the figure, $AB = 3$. Calculate the length of BC",
    "The radius of the circle is ____ cm.",
    "If I am 12 and the bar shows 7, how many years older am I?",
    "Which of these cannot be the value of x? A. 1  B. 2",
    "How much information does the chart give per bar?",
    "求图中角的度数是多少？",
    "count red?",
]
BAD = {
    "": "empty",
    " ?!… ": "empty",
    "I'm sorry, but I can't help with that.": "refusal",
    "I’m unable to view the picture?": "refusal",  # a typographic apostrophe
    "As an AI, what would I ask?": "refusal",
    "I cannot write a question about it, sorry?": "refusal",
    "What is x? There is not enough information to say.": "missing_information",
    "What is the length AB, which is not shown in the figure?": "missing_information",
    "How tall is it? It cannot be determined from the picture.": "missing_information",
    "No image provided. What should I ask?": "missing_information",
    "What is the mean if the data are incomplete?": "missing_information",
    "A triangle with sides 3, 4 and 5.": "no_question",
}


@pytest.mark.parametrize("question", GOOD)
def test_questions_are_let_through(question):
    assert unanswerable(question) is None


@pytest.mark.parametrize("question", BAD)
def test_what_is_no_question_is_named(question):
    assert unanswerable(question) == BAD[question]


def test_forms_of_a_models_own_need_no_question_mark():
    assert unanswerable("r2:") == "no_question"
    assert unanswerable("r2:", "") is None and unanswerable("r2:", ":$") is None
    assert unanswerable(":", "") == "empty"


def test_normalised_joins_what_a_person_would_join():
    same = [
        "What is the area of $ABC$?",
        "what  is the area of\nABC",
        "Question: What is the area of ABC ?",
        "**What is the area of `ABC`?**",
        "What is the area of ＡＢＣ？",
    ]
    assert len({normalised(q) for q in same}) == 1
    other = ("x-1", "x+1", "x 1", "x*1", "x", "x!", "1.5", "15")
    assert len({normalised(f"What is {formula}?") for formula in other}) == len(other)


def kept(questions, images=("a",), source=(), **options):
    candidates = [
        q if isinstance(q, Candidate) else Candidate(q, images, source) for q in questions
    ]
    return filter_questions(candidates, FilterConfig(**options))


def test_duplicates_by_hand():
    asked = ["What is x?", "what is X", "What is y?", " What is x? ", "What is x?"]
    assert kept(asked) == ([0, 2], {"duplicate": 3})
    assert kept(asked, duplicates="exact") == ([0, 1, 2], {"duplicate": 2})
    assert kept(asked, duplicates="keep") == ([0, 1, 2, 3, 4], {})


def test_another_image_makes_another_question():
    pair = [Candidate("What is x?", (i,)) for i in ("a", "b", "a")]
    assert kept(pair) == ([0, 1], {"duplicate": 1})


def test_the_source_question_is_not_written_again():
    source = ("What is $x$?",)
    assert kept(["what is x"], source=source) == ([], {"same_as_source": 1})
    assert kept(["what is x?"], source=source, duplicates="exact") == ([0], {})
    assert kept(["What is $x$?"], source=source, duplicates="exact") == ([], {"same_as_source": 1})
    assert kept(["what is x?"], source=source, against_source=False) == ([0], {})


def test_each_counts_once_and_for_the_first_that_removes_it():
    cut = Candidate("What is x?", ("a",), stopped=False)
    asked = [
        cut,
        Candidate(None, ("a",)),
        "What is \ufffd?",
        "What is in <image>?",
        "I'm sorry",
        "no",
        "What is x?",
        "What is x?",
    ]
    assert kept(asked) == (
        [6],
        {
            "cut_short": 1,
            "unread": 2,
            "marker": 1,
            "refusal": 1,
            "no_question": 1,
            "duplicate": 1,
        },
    )
    # What a data set could not hold goes whatever the options.
    off = {"unanswerable": False, "duplicates": "keep", "against_source": False}
    indices, removed = kept([*asked, " "], **off)
    assert indices == [4, 5, 6, 7]
    assert removed == {"cut_short": 1, "unread": 2, "marker": 1, "empty": 1}


def test_tokens_of_the_chat_template_are_markers():
    asked = [Candidate("What is x<|im_end|>?", ("a",)), Candidate("What is x?", ("a",))]
    assert filter_questions(asked, FilterConfig(), ("<|im_end|>",)) == ([1], {"marker": 1})


texts = st.sampled_from(["What is x?", "what is x", "Find y.", "", "I'm sorry", "z", "What is w?"])
candidates = st.builds(
    Candidate,
    st.none() | texts,
    st.sampled_from([("a",), ("b",), ("a", "b")]),
    st.sampled_from([(), ("What is w?",)]),
    st.booleans(),
)


@given(st.lists(candidates, max_size=20), st.sampled_from(["keep", "exact", "normalised"]))
def test_nothing_is_lost_and_a_second_pass_removes_nothing(asked, duplicates):
    config = FilterConfig(duplicates=duplicates)
    indices, removed = filter_questions(asked, config)
    assert indices == sorted(set(indices)) and len(indices) + sum(removed.values()) == len(asked)
    left = [asked[i] for i in indices]
    assert filter_questions(left, config) == (list(range(len(left))), {})
    # Nothing that is kept depends on what comes later.
    assert filter_questions(asked[:10], config)[0] == [i for i in indices if i < 10]


def label(fraction, answered=True, question="ask: What is x? Think."):
    return Label(0, question, "1" if answered else None, fraction, {}, 4, 4, None)


def test_votes_by_hand():
    fractions = {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.95, 4: 1.0}
    labels = {i: label(fraction) for i, fraction in fractions.items()} | {
        5: label(0.0, answered=False)
    }
    asked = [(i, "What is x?") for i in range(7)]
    removed = {"too_scattered": 2, "too_unanimous": 1, "unlabelled": 1}
    assert filter_votes(asked, labels, 0.3, 0.95) == ([1, 2, 3], removed)  # the ends are kept
    removed = {"too_scattered": 1, "unlabelled": 1}
    # Without an answer there is no vote, whatever the bounds.
    assert filter_votes(asked, labels, 0.0, 1.0) == ([0, 1, 2, 3, 4], removed)


def test_labels_of_other_rows_and_bad_bounds_are_refused():
    with pytest.raises(UserError, match="row 0 asks 'What is y"):
        filter_votes([(0, "What is y?")], {0: label(0.5)}, 0, 1)
    for low, high in ((0.6, 0.5), (-0.1, 1), (0, 1.1), (float("nan"), 1)):
        with pytest.raises(UserError, match="0 <= low <= high <= 1"):
            filter_votes([], {}, low, high)


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UserError, match="asks='\\('"):
        FilterConfig(asks="(")
    assert replace(FilterConfig(), asks="").asks == ""
