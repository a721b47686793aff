"""Reading the final answer out of a response."""

from __future__ import annotations

import re

from selfevolve_jax.errors import UserError

# One pass over the tokens that matter. `\\` (a LaTeX line break) and `\{`, `\}` (printed braces)
# are matched so that they are skipped; `\\boxed{` with a doubled backslash, as JSON-minded models
# write it, still counts as a box.
_TOKENS = re.compile(r"(?P<box>\\boxed\s*\{)|\\\\(?!boxed)|\\[{}]|(?P<open>\{)|(?P<close>\})")


def extract(text: str, pattern: str) -> str | None:
    """The answer that `text` ends on, stripped, or None where there is none.

    pattern: "boxed" reads the last balanced \\boxed{...}; anything else is a regular expression,
      whose last match's first group (whole match, if it has no group) is the answer.
    Of several answers in one response the last wins, even if it is empty: an empty last answer is
    None and earlier ones are not gone back to. Only a \\boxed{ that never closes is passed over. Of
    nested boxes the innermost, which opened last, is the answer.

    Raises UserError for a pattern that is not a valid regular expression.
    """
    if pattern == "boxed":
        answer = _last_box(text)
    else:
        expression = compiled(pattern)
        answer = None
        for match in expression.finditer(text):
            answer = match.group(1 if expression.groups else 0)
    return (answer.strip() or None) if answer is not None else None


def compiled(pattern: str) -> re.Pattern[str]:
    """`pattern` as a regular expression; UserError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"the answer pattern {pattern!r} is not a regular expression ({error}); "
            'mend it, or use "boxed" for the last \\boxed{...}'
        ) from error


def _last_box(text: str) -> str | None:
    # A stack of open braces, so that hostile text with thousands of unclosed boxes is still linear.
    open_braces: list[int | None] = []  # where a box's content starts; None for an ordinary brace
    best_start, best = -1, None
    for token in _TOKENS.finditer(text):
        if token.lastgroup == "box":
            open_braces.append(token.end())
        elif token.lastgroup == "open":
            open_braces.append(None)
        elif token.lastgroup == "close" and open_braces:
            start = open_braces.pop()
            if start is not None and start > best_start:
                best_start, best = start, text[start : token.start()]
    return best
