"""The agent's search policies: which program the next candidate is made from.

A policy is a function (source, attempt, mutate, draw, heat). attempt(candidate) tries one and returns
how many visible cases it passes; it ends the search by an exception when one passes all, or when the
budget is spent. mutate(source) gives a changed source. heat() gives line -> weight.
"""

from tools import search


@search
def single(source, attempt, mutate, draw, heat):
    """Each candidate is one change of the program as it came."""
    while True:
        attempt(mutate(source))
