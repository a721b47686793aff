"""Remakes selfevolve_jax/ui_genie/words.txt from the pages of the `miniwob` package:

    python tests/ui_genie/make_words.py

Names (as they are, and in lower and upper case, which two tasks ask for) and filler words (also with a
capital, as they begin sentences) are read from the package; the labels are those of the pages that
have a script in ui_genie/demos.py.
"""

import re
from pathlib import Path

from selfevolve_jax.ui_genie import tiny
from selfevolve_jax.ui_genie.miniwob import pages_folder

LABELS = """
Click the button Me ONE then click TWO on okay submit ok yes no cancel next previous Submit Okay
Ok Yes No Cancel Next Previous OK link Close dialog box by clicking x in labeled Tab a widget
radio checkbox text textarea colored red blue olive lime black white grey purple orange yellow
cyan pink magenta aqua green Focus into textbox input 1st 2nd 3rd 4th 5th 6th 7th 8th 9th Select
and nothing Expand section below Section sections to find Switch between tabs Enter field press
Type all upper case letters lower password both fields Password Verify username Username Login
login Navigate through file tree Find folder or named Use enter Search search result https www com
net org tab item block menuitem option select slider image circle rectangle check uncheck type
wait open swipe up down left right short medium long Back Home Menu Enter done success failure
"""


def make() -> str:
    """The text of words.txt: one word a line, without a repetition."""
    source = (pages_folder().parent / "common" / "ui_utils.js").read_text(encoding="utf-8")
    names = _strings(source, "FIFTY_NAMES")
    filler = [word.strip(",") for word in _strings(source, "lorem_words")]
    found = [*LABELS.split(), *names, *map(str.lower, names), *map(str.upper, names)]
    found += [*filler, *map(str.capitalize, filler)]
    return "".join(f"{word}\n" for word in dict.fromkeys(found))


def _strings(source: str, name: str) -> list[str]:
    """The strings of a list in the pages' JavaScript."""
    there = re.search(rf"ui_utils\.{name} = \[(.*?)\]", source, re.DOTALL)
    assert there, f"{name} is not in the package any more"
    return re.findall(r"[\"'](.*?)[\"']", there[1])


if __name__ == "__main__":
    Path(tiny.__file__).with_name("words.txt").write_text(make(), encoding="utf-8")
