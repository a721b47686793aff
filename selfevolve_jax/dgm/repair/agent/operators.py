"""The agent's operators, each a change of one place in a program."""

import ast  # transplanted operators use these

from tools import (  # noqa: F401
    blocks,
    copy,
    get,
    line_of,
    loaded,
    nodes,
    operator,
    put,
    slot_line,
    slots,
    statements,
)


@operator
def delete_statement(tree, draw):
    place = draw.place(statements(tree), line_of)
    if place is None:
        return False
    block, i = place
    if len(block) > 1:
        del block[i]
    else:
        block[0] = ast.Pass()
    return True


@operator
def copy_statement(tree, draw):
    place = draw.place(statements(tree), line_of)
    if place is None:
        return False
    source = draw.choice(statements(tree))
    place[0].insert(place[1], copy(source[0][source[1]]))
    return True
