"""How QuixBugs' functions are called with plain values, and cases for those on graphs and lists.
Standard library alone: this file is put into the sandboxes. All cases here are our own.

A graph is {name: [names that it leads to]}; weighted edges are [from, to, weight]; a linked list is its
values. Each directed graph with an order to find has one order only, and no two spanning trees of the
weighted ones weigh the same, so that any right program gives the expected value.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any


class Node:
    def __init__(self, value):
        self.value = value
        self.successor: Any = None
        self.successors = []
        self.predecessors = []
        self.incoming_nodes = []
        self.outgoing_nodes = []

    def __lt__(self, other):
        return self.value < other.value


def adapt(entry, function, *arguments):
    """function(*arguments), with nodes made of plain arguments, and a plain result."""
    make = _MAKE.get(entry)
    return _plain(make(function, *arguments) if make else function(*arguments))


def _plain(value):
    if isinstance(value, Iterator):
        value = list(value)
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "infinite" if value == float("inf") else value


def _graph(graph):
    nodes = {name: Node(name) for name in graph}
    for name, others in graph.items():
        for other in others:
            nodes[name].successors.append(nodes[other])
            nodes[name].outgoing_nodes.append(nodes[other])
            nodes[other].predecessors.append(nodes[name])
            nodes[other].incoming_nodes.append(nodes[name])
    return nodes


def _list(values):
    nodes = [Node(value) for value in values]
    for node, after in pairwise(nodes):
        node.successor = after
    return nodes


def _search(function, graph, start, goal):
    nodes = _graph(graph)
    return function(nodes[start], nodes[goal])


def _detect_cycle(function, values, back):
    """back: the place of the node that the last one leads to, or None."""
    nodes = _list(values)
    if back is not None:
        nodes[-1].successor = nodes[back]
    return function(nodes[0] if nodes else None)


def _spanning_tree(function, edges):
    return function({(a, b): weight for a, b, weight in edges})


def _reverse(function, values):
    nodes = _list(values)
    node = function(nodes[0] if nodes else None)
    found = []
    while node is not None and len(found) <= len(values):
        found.append(node.value)
        node = node.successor
    return found


def _path_length(function, edges, start, goal):
    names = sorted({name for a, b, _ in edges for name in (a, b)} | {start, goal})
    nodes = _graph({name: [b for a, b, _ in edges if a == name] for name in names})
    lengths = {(nodes[a], nodes[b]): length for a, b, length in edges}
    return function(lengths, nodes[start], nodes[goal])


def _path_lengths(function, n, edges):
    lengths = function(n, {(a, b): length for a, b, length in edges})
    return [[lengths[i, j] for j in range(n)] for i in range(n)]


def _paths(function, source, edges):
    found = function(source, {(a, b): weight for a, b, weight in edges})
    return sorted([name, length] for name, length in found.items())


def _order(function, graph):
    return [node.value for node in function(list(_graph(graph).values()))]


_MAKE = {
    "breadth_first_search": _search,
    "depth_first_search": _search,
    "detect_cycle": _detect_cycle,
    "minimum_spanning_tree": _spanning_tree,
    "reverse_linked_list": _reverse,
    "shortest_path_length": _path_length,
    "shortest_path_lengths": _path_lengths,
    "shortest_paths": _paths,
    "topological_ordering": _order,
}

_CHAIN = {"a": ["b"], "b": ["c"], "c": []}
_RING = {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}
_FORK = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": [], "e": ["a"]}
_SEARCHES = [
    [[_CHAIN, "a", "c"], True],
    [[_CHAIN, "c", "a"], False],
    [[_RING, "a", "d"], False],
    [[_RING, "b", "d"], False],
    [[_RING, "d", "c"], True],
    [[_FORK, "a", "d"], True],
    [[_FORK, "b", "c"], False],
    [[_FORK, "d", "e"], False],
    [[_FORK, "e", "e"], True],
    [[_RING, "c", "b"], True],
]
_SQUARE = [["a", "b", 1], ["b", "c", 2], ["c", "d", 3], ["a", "d", 9]]
CASES = {
    "breadth_first_search": _SEARCHES,
    "depth_first_search": _SEARCHES,
    "detect_cycle": [
        [[[1, 2, 3], None], False],
        [[[1, 2, 3], 0], True],
        [[[1], None], False],
        [[[1], 0], True],
        [[[1, 2], None], False],
        [[[1, 2, 3, 4], 2], True],
        [[[], None], False],
        [[[1, 2, 3, 4], None], False],
    ],
    "minimum_spanning_tree": [
        [[_SQUARE], [["a", "b"], ["b", "c"], ["c", "d"]]],
        [[[["a", "b", 4]]], [["a", "b"]]],
        [[[]], []],
        [[[["a", "b", 1], ["b", "c", 5], ["a", "c", 2]]], [["a", "b"], ["a", "c"]]],
        [[[["a", "b", 3], ["c", "d", 1], ["b", "c", 2], ["a", "c", 7]]],
         [["a", "b"], ["b", "c"], ["c", "d"]]],
        [[[["a", "b", 1], ["c", "d", 2], ["b", "d", 3], ["a", "d", 4], ["a", "c", 5]]],
         [["a", "b"], ["b", "d"], ["c", "d"]]],
    ],
    "reverse_linked_list": [
        [[[1, 2, 3]], [3, 2, 1]],
        [[[1, 2]], [2, 1]],
        [[[]], []],
        [[[5]], [5]],
        [[[4, 3, 2, 1]], [1, 2, 3, 4]],
        [[[7, 7, 8]], [8, 7, 7]],
    ],
    "shortest_path_length": [
        [[_SQUARE, "a", "d"], 6],
        [[_SQUARE, "a", "c"], 3],
        [[_SQUARE, "d", "a"], "infinite"],
        [[_SQUARE, "b", "b"], 0],
        [[[["a", "b", 9], ["a", "c", 2], ["c", "b", 3], ["b", "d", 1]], "a", "d"], 6],
        [[[["a", "b", 1], ["b", "c", 1], ["a", "c", 5], ["c", "d", 4]], "a", "d"], 6],
    ],
    "shortest_path_lengths": [
        [[2, [[0, 1, 3]]], [[0, 3], ["infinite", 0]]],
        [[1, []], [[0]]],
        [[3, [[0, 1, 3], [1, 2, 5]]], [[0, 3, 8], ["infinite", 0, 5], ["infinite", "infinite", 0]]],
        [[3, [[0, 1, 3], [1, 2, 5], [2, 0, 1]]], [[0, 3, 8], [6, 0, 5], [1, 4, 0]]],
        [[3, [[0, 1, 9], [0, 2, 1], [2, 1, 2]]], [[0, 3, 1], ["infinite", 0, "infinite"],
                                                  ["infinite", 2, 0]]],
        [[3, [[2, 1, 4], [1, 0, -2]]], [[0, "infinite", "infinite"], [-2, 0, "infinite"], [2, 4, 0]]],
    ],
    "shortest_paths": [
        [["a", _SQUARE], [["a", 0], ["b", 1], ["c", 3], ["d", 6]]],
        [["a", [["a", "b", 2]]], [["a", 0], ["b", 2]]],
        [["a", [["a", "b", 5], ["a", "c", 1], ["c", "b", 2]]], [["a", 0], ["b", 3], ["c", 1]]],
        [["b", [["b", "c", 4], ["c", "a", -1]]], [["a", 3], ["b", 0], ["c", 4]]],
        [["c", [["b", "d", 1], ["c", "b", 2]]], [["b", 2], ["c", 0], ["d", 3]]],
        [["a", [["c", "d", 1], ["b", "c", 1], ["a", "b", 1]]],
         [["a", 0], ["b", 1], ["c", 2], ["d", 3]]],
    ],
    "topological_ordering": [
        [[_CHAIN], ["a", "b", "c"]],
        [[{"c": [], "b": ["c"], "a": ["b"]}], ["a", "b", "c"]],
        [[{"a": []}], ["a"]],
        [[{"d": [], "c": ["d"], "a": ["b", "c"], "b": ["c", "d"]}], ["a", "b", "c", "d"]],
        [[{"x": ["z", "y"], "y": ["z"], "z": []}], ["x", "y", "z"]],
        [[{"b": ["a"], "a": [], "c": ["b", "a"]}], ["c", "b", "a"]],
    ],
}  # fmt: skip
