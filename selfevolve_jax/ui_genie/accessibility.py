"""Android's accessibility trees: what stands where on a screen, and what a click was meant for.

AndroidControl keeps each screen's as an AndroidAccessibilityForest, a protocol buffer of DeepMind's
android_env. The field numbers here are those of google-deepmind/android_env, android_env/proto/a11y:
android_accessibility_forest.proto, android_accessibility_window_info.proto,
android_accessibility_tree.proto, android_accessibility_node_info.proto and rect.proto. Only the
fields below are decoded; protocol buffers leave out what is 0, false or empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.tfrecord import BYTES, VARINT, WireError, signed, text_of, wire_fields

Box = tuple[int, int, int, int]  # left, top, right, bottom, the last two exclusive (android's Rect)

# Number in AndroidAccessibilityNodeInfo → field of Node.
_TEXTS = {3: "class_name", 4: "description", 5: "hint", 7: "text"}
_FLAGS = {
    12: "checkable",
    13: "checked",
    14: "clickable",
    15: "editable",
    18: "focused",
    19: "long_clickable",
    23: "visible",
}
_KINDS = {  # the last part of a view's class → Element.kind, where it is not that part in lower case
    "edittext": "input",
    "autocompletetextview": "input",
    "multiautocompletetextview": "input",
    "imagebutton": "button",
    "floatingactionbutton": "button",
    "textview": "text",
    "checkedtextview": "checkbox",
    "radiobutton": "radio",
    "togglebutton": "switch",
    "switchcompat": "switch",
    "imageview": "image",
}


@dataclass(frozen=True)
class Node:
    """A view on the screen. box: in pixels of the screen, and may lie outside it or be empty. layer:
    its window's; a higher one is in front."""

    box: Box = (0, 0, 0, 0)
    class_name: str = ""
    description: str = ""
    hint: str = ""
    text: str = ""
    checkable: bool = False
    checked: bool = False
    clickable: bool = False
    editable: bool = False
    focused: bool = False
    long_clickable: bool = False
    visible: bool = False
    layer: int = 0


def forest(data: bytes) -> list[Node]:
    """The nodes of a serialised AndroidAccessibilityForest: windows as they come, each in its tree's
    order, parents before children. WireError if it is none."""
    nodes: list[Node] = []
    for number, wire, window in wire_fields(data):
        if number == 1:  # AndroidAccessibilityForest.windows
            nodes += _window(_message(number, wire, window))
    return nodes


def target(nodes: Iterable[Node], x: int, y: int) -> Node | None:
    """What a click at (x, y), pixels of the screen, was meant for; None if nothing is there.

    The smallest visible node that can be clicked (or long pressed) and contains the point, in the
    front window that has one: under an open keyboard lie views that were not meant. Where nothing
    there can be clicked the smallest visible node, and last the smallest node. Of equal boxes the
    later, which is the inner one.
    """
    there = [node for node in nodes if contains(node.box, x, y)]
    visible = [node for node in there if node.visible]
    for choice in ([n for n in visible if n.clickable or n.long_clickable], visible, there):
        if choice:
            front = max(node.layer for node in choice)
            return min(reversed([n for n in choice if n.layer == front]), key=lambda n: area(n.box))
    return None


def elements(nodes: Iterable[Node], width: int, height: int) -> list[Element]:
    """What can be acted on or read: visible nodes that can be clicked, typed into or checked, or have
    a text of their own. Boxes in pixels of the screen (width x height), cut off at its edges."""
    found = []
    for node in nodes:
        left, top, right, bottom = node.box
        box = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        text = node.text or node.description or node.hint
        acts = node.clickable or node.long_clickable or node.editable or node.checkable
        if node.visible and area(box) and (acts or text):
            checked = node.checked if node.checkable else None
            found.append(Element(kind(node.class_name), text, box, node.focused, checked))
    return found


def kind(class_name: str) -> str:
    """ "android.widget.ImageButton" → "button": Element.kind of a view's class."""
    last = class_name.rpartition(".")[2].lower() or "view"
    return _KINDS.get(last, last)


def contains(box: Box, x: int, y: int) -> bool:
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def area(box: Box) -> int:
    """0 for a box that is inside out."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def _window(data: bytes) -> list[Node]:
    layer, trees = 0, []
    for number, wire, value in wire_fields(data):
        if number == 4:  # layer
            layer = _int32(number, wire, value)
        elif number == 11:  # tree
            trees.append(_message(number, wire, value))
    return [
        _node(_message(number, wire, node), layer)
        for tree in trees
        for number, wire, node in wire_fields(tree)
        if number == 1  # AndroidAccessibilityTree.nodes
    ]


def _node(data: bytes, layer: int) -> Node:
    fields: dict = {"layer": layer}
    for number, wire, value in wire_fields(data):
        if number == 2:  # bounds_in_screen
            fields["box"] = _rect(_message(number, wire, value))
        elif number in _TEXTS:
            fields[_TEXTS[number]] = text_of(_message(number, wire, value))
        elif number in _FLAGS:
            fields[_FLAGS[number]] = bool(_int32(number, wire, value))
    return Node(**fields)


def _rect(data: bytes) -> Box:
    sides = [0, 0, 0, 0]
    for number, wire, value in wire_fields(data):
        if 1 <= number <= 4:  # left, top, right, bottom
            sides[number - 1] = _int32(number, wire, value)
    return (sides[0], sides[1], sides[2], sides[3])


def _message(number: int, wire: int, value: bytes) -> bytes:
    if wire != BYTES:
        raise WireError(
            f"field {number} of an accessibility tree has wire type {wire}, not {BYTES}"
        )
    return value


def _int32(number: int, wire: int, value: int) -> int:
    if wire != VARINT:
        raise WireError(
            f"field {number} of an accessibility tree has wire type {wire}, not {VARINT}"
        )
    return signed(value)
