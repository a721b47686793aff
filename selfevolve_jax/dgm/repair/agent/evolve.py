"""The agent makes a child of an agent: a copy of its files with one change.

    python3 -I -S evolve.py PARENT_FOLDER CHILD_FOLDER DONORS_FOLDER|- SEED

The first line of its output says what was changed. Which kind of change is drawn by the weights in the
policy.json beside this file, the maker's own, which a change may shift too:

    transplant  an operator of the donor library joins
    search      another search policy: one that is there, or one of the donor library
    remove      an operator goes
    reweigh     an operator, or a kind of change, becomes likelier or less likely
    splice      a statement of the agent's own code is deleted, copied or moved

Without a donor library (-) only the last three are left, and search among what is there.
"""

import ast
import json
import os
import random
import sys

SPLICED = ("operators.py", "searches.py", "repair.py", "tools.py", "evolve.py")
TRIES = 60


def functions(text, mark):
    """name -> text of the functions under a decorator, in order."""
    lines = text.splitlines(keepends=True)
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(d, ast.Name) and d.id == mark for d in node.decorator_list
        ):
            found[node.name] = "".join(lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
    return found


def transplant(files, policy, donors, rng):
    donated = functions(donors["operators.py"], "operator")
    here = functions(files["operators.py"], "operator")
    names = [name for name in donated if name not in here]
    if not names:
        return None
    name = rng.choice(names)
    files["operators.py"] = (
        files["operators.py"].rstrip("\n") + "\n\n\n" + donated[name].rstrip() + "\n"
    )
    policy["operators"][name] = 1.0
    return f"transplanted operator {name} from the donor library"


def change_search(files, policy, donors, rng):
    here = functions(files["searches.py"], "search")
    donated = functions(donors["searches.py"], "search") if donors else {}
    names = [name for name in {**here, **donated} if name != policy["search"]]
    if not names:
        return None
    name = rng.choice(names)
    if name not in here:
        text = files["searches.py"].rstrip("\n")
        files["searches.py"] = text + "\n\n\n" + donated[name].rstrip() + "\n"
    was, policy["search"] = policy["search"], name
    return f"swapped search policy {was} for {name}"


def remove(files, policy, donors, rng):
    here = functions(files["operators.py"], "operator")
    if len(here) < 2:
        return None
    name = rng.choice(list(here))
    text = files["operators.py"].replace(here[name], "")
    files["operators.py"] = text.rstrip("\n") + "\n"
    policy["operators"].pop(name, None)
    return f"removed operator {name}"


def reweigh(files, policy, donors, rng):
    group = rng.choice(["operators", "operators", "operators", "mutation"])
    name = rng.choice(sorted(policy[group]))
    was = policy[group][name]
    policy[group][name] = round(was * rng.choice([0.25, 0.5, 2.0, 3.0]), 3)
    what = "operator" if group == "operators" else "kind of change"
    return f"weight of {what} {name} from {was} to {policy[group][name]}"


def statements(tree):
    """All (block, index) of a file."""
    blocks = [getattr(node, field, None) for node in ast.walk(tree) for field in ("body", "orelse")]
    return [(block, i) for block in blocks if isinstance(block, list) for i in range(len(block))]


def splice(files, policy, donors, rng):
    name = rng.choice([n for n in SPLICED if n in files])
    tree = ast.parse(files[name])
    block, i = rng.choice(statements(tree))
    line = block[i].lineno
    copied = ast.parse(ast.unparse(block[i])).body[0]
    kind = rng.choice(["deleted", "copied", "moved"])
    if kind != "copied":
        if len(block) > 1:
            del block[i]
        else:
            block[i] = ast.Pass()
    if kind != "deleted":
        target, j = rng.choice(statements(tree))
        target.insert(j, copied)
    files[name] = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return f"spliced {name}: {kind} the statement of line {line}"


CHANGES = {
    "transplant": transplant,
    "search": change_search,
    "remove": remove,
    "reweigh": reweigh,
    "splice": splice,
}


def child(files, donors, weights, seed):
    """(files, what was changed) of a child, or (None, why none came of it). weights: of the kinds."""
    rng = random.Random(seed)
    kinds = [k for k in weights if k in CHANGES and (donors or k != "transplant")]
    for _ in range(TRIES):
        changed = dict(files)
        policy = json.loads(files["policy.json"])
        kind = rng.choices(kinds, [weights[k] for k in kinds])[0]
        said = CHANGES[kind](changed, policy, donors, rng)
        if said:
            changed["policy.json"] = json.dumps(policy, indent=2, sort_keys=True) + "\n"
        if said and changed != files:
            return changed, said
    return None, f"no change was found in {TRIES} tries"


def read(folder):
    files = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            files[name] = file.read()
    return files


def main(parent, to, donors, seed):
    own = os.path.join(os.path.dirname(os.path.abspath(__file__)), "policy.json")
    with open(own, encoding="utf-8") as file:
        weights = json.load(file)["mutation"]
    files, said = child(read(parent), None if donors == "-" else read(donors), weights, int(seed))
    print(said)
    for name, text in (files or {}).items():
        os.makedirs(to, exist_ok=True)
        with open(os.path.join(to, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
