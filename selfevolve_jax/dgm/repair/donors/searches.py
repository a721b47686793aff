"""The donor library's search policies. See agent/searches.py for what a policy is."""

from selfevolve_jax.dgm.repair.agent.tools import search


@search
def focused(source, attempt, mutate, draw, heat):
    """One change of the program as it came, sooner on lines that failing cases run."""
    draw.heat = heat()
    while True:
        attempt(mutate(source))


@search
def climbing(source, attempt, mutate, draw, heat):
    """Every other change is made to the best program so far."""
    best, score = source, attempt(mutate(source))
    while True:
        candidate = mutate(draw.choice([source, best]))
        passed = attempt(candidate)
        if passed > score:
            best, score = candidate, passed


@search
def focused_climbing(source, attempt, mutate, draw, heat):
    """Changes on lines that failing cases run; a third of them to the best program so far."""
    draw.heat = heat()
    best, score = source, 0
    while True:
        candidate = mutate(draw.choice([source, source, best]))
        passed = attempt(candidate)
        if passed > score:
            best, score = candidate, passed


@search
def pairs(source, attempt, mutate, draw, heat):
    """Always two changes at once."""
    while True:
        attempt(mutate(mutate(source)))


@search
def wandering(source, attempt, mutate, draw, heat):
    """Each candidate is a change of the last one."""
    here = source
    while True:
        here = mutate(here)
        attempt(here)


@search
def hasty(source, attempt, mutate, draw, heat):
    """Gives up after five candidates."""
    for _ in range(5):
        attempt(mutate(source))
