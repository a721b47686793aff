"""The agent: repairs the function in /work/task by trying changed programs on its visible cases.

    python3 -I -S repair.py TASK_FOLDER ANSWER_FILE

It writes the best program that it found, and nothing where none passes more cases than the faulty one.
Its log names the operators of its candidates.
"""

import ast
import json
import os
import sys
from collections import Counter

HERE = os.path.dirname(os.path.abspath(__file__))
REPEATS = 40  # draws without a new candidate, after which the search is given up


class Found(Exception):
    pass


class Exhausted(Exception):
    pass


def main(folder, answer_path):
    sys.path[:0] = [HERE, folder]
    import operators  # noqa: F401
    import searches  # noqa: F401
    import tools
    import trial

    with open(os.path.join(HERE, "policy.json")) as file:
        policy = json.load(file)
    task = trial.Trial(folder)
    draw = tools.Draw(task.seed)
    source = ast.unparse(ast.parse(task.source))
    names = [name for name in policy["operators"] if name in tools.OPERATORS]
    weights = [policy["operators"][name] for name in names]
    seen = {source}
    used = Counter()
    at_first = task.passed(source)
    best = [sum(at_first), source, ""]
    made_by = {source: ""}

    def mutate(text):
        """A program that was not tried yet, by one operator."""
        for _ in range(REPEATS):
            name = draw.choices(names, weights)[0]
            tree = ast.parse(text)
            try:
                if not tools.OPERATORS[name](tree, draw):
                    continue
                changed = ast.unparse(ast.fix_missing_locations(tree))
                ast.parse(changed)
            except Exception:
                used["broke: " + name] += 1
                continue
            if changed not in seen:
                seen.add(changed)
                made_by[changed] = (made_by.get(text, "") + " " + name).strip()
                return changed
        raise Exhausted

    def attempt(candidate):
        results = task.passed(candidate)
        used[made_by.get(candidate, "").split(" ")[-1]] += 1
        score = sum(results)
        if any(was and not now for was, now in zip(at_first, results, strict=True)):
            score = min(score, best[0])  # it broke a case
        if score > best[0]:
            best[:] = [score, candidate, made_by.get(candidate, "")]
        if all(results):
            raise Found
        return sum(results)

    end = ""
    try:
        tools.SEARCHES[policy["search"]](source, attempt, mutate, draw, lambda: task.heat(source))
    except (Found, Exhausted, trial.OutOfBudget) as reason:
        end = type(reason).__name__
    if best[1] != source:
        with open(answer_path, "w") as file:
            file.write(best[1] + "\n")
    print(
        f"{end}: {task.tried} candidates; visible {sum(at_first)} -> {best[0]} of {len(at_first)}"
        + (f" by {best[2]}" if best[2] else "")
    )
    print("tried " + ", ".join(f"{name} {n}" for name, n in sorted(used.items())))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
