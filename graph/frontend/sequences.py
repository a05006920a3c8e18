"""Sequences of known length: their elements are values, and what passes them on disappears."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastrun.graph.frontend.inline import stacked
from fastrun.graph.frontend.values import Values

# Elements of a sequence that is followed, at most.
_LONGEST = 2**10


class Sequences:
    """The elements of the sequences that are known, by their names.

    A sequence becomes one when a node reads it that is not written out.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._lists = dict[str, tuple[str, ...]]()
        self._empty = dict[str, onnx.NodeProto]()  # which says the type of later elements
        self._made = set[str]()

    def written(self, node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto] | None:
        """The nodes in the place of one of sequences; None for another, and unknown sequences."""
        if node.domain or self._made & {*node.output}:
            return None
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        names = [*node.input]
        if node.op_type == "SequenceEmpty":
            self._empty[node.output[0]] = node
            return self._listed(node, ())
        if node.op_type == "SequenceConstruct":
            return self._listed(node, names)
        if node.op_type == "SplitToSequence":
            return self._split(node, given, opset)
        known = self._lists.get(names[0]) if names else None
        return None if known is None else self._of(node, [*known], given, opset)

    def needed(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that make sequences of those names of which only the elements are known."""
        found = []
        for name in names:
            if name not in self._lists:
                continue
            elements = self._lists.pop(name)
            self._made.add(name)
            self._values.known.discard(name)
            node = helper.make_node("SequenceConstruct", elements, [name], name)
            if not elements:
                node.CopyFrom(next(iter(self._empty.values())))
                node.output[0] = name
            found.append(node)
        return found

    def _listed(self, node: onnx.NodeProto, elements: Sequence[str]) -> list[onnx.NodeProto] | None:
        if len(elements) > _LONGEST:
            return None
        self._values.define(node.output[0])
        self._lists[node.output[0]] = tuple(elements)
        return []

    def _of(
        self, node: onnx.NodeProto, elements: list[str], given: dict[str, Any], opset: int
    ) -> list[onnx.NodeProto] | None:
        """The nodes in the place of one that reads a known sequence."""
        (output, *_), count = node.output, len(elements)
        match node.op_type:
            case "Identity":
                return self._listed(node, elements)
            case "SequenceLength":
                length = numpy_helper.from_array(np.array(count))
                return [helper.make_node("Constant", [], [output], value=length)]
            case "ConcatFromSequence" if elements and given.get("new_axis", 0):
                values = self._values
                return stacked(
                    elements, output, given["axis"], opset, values.fresh, values.constant
                )
            case "ConcatFromSequence" if elements:
                return [helper.make_node("Concat", elements, [output], axis=given["axis"])]
        grows = node.op_type == "SequenceInsert"
        place = self._place(node, 2 if grows else 1, count, grows)
        if place is None:
            return None
        match node.op_type:
            case "SequenceAt":
                return [helper.make_node("Identity", [elements[place]], [output])]
            case "SequenceInsert":
                elements.insert(place, node.input[1])
                return self._listed(node, elements)
            case "SequenceErase":
                del elements[place]
                return self._listed(node, elements)
        return None

    def _place(self, node: onnx.NodeProto, index: int, count: int, grows: bool) -> int | None:
        """The place that an input names, by default the last; None if it is unknown or outside."""
        last = count if grows else count - 1
        place = last
        if len(node.input) > index and node.input[index]:
            values = self._values.constants.get(node.input[index])
            if values is None or values.size != 1:
                return None
            place = int(values.reshape(()))
            place = place + count if place < 0 else place
        return place if 0 <= place <= last else None

    def _split(
        self, node: onnx.NodeProto, given: dict[str, Any], opset: int
    ) -> list[onnx.NodeProto] | None:
        """Parts of a tensor of known shape; of one entry each, with or without their axis."""
        x, values, axis = node.input[0], self._values, given.get("axis", 0)
        shape, split = values.shape(x), node.input[1] if len(node.input) > 1 else ""
        if not shape or not -len(shape) <= axis < len(shape) or (
            split and split not in values.constants
        ):  # fmt: skip
            return None
        size, sizes = shape[axis], np.array([1])
        if split:
            sizes = values.constants[split]
        if sizes.ndim == 0 or not split:
            each = int(sizes.reshape(()))
            if each < 1:
                return None
            sizes = np.diff([*range(0, size, each), size])
        if len(sizes) > _LONGEST or sizes.sum() != size or not sizes.all():
            return None
        parts = [values.fresh(f"{node.output[0]}.{i}") for i in range(len(sizes))]
        if self._listed(node, parts) is None:
            return None
        values.read.update(parts)
        if not split and not given.get("keepdims", 1):
            places = (values.constant("place", np.array(i)) for i in range(size))
            return [
                helper.make_node("Gather", [x, place], [part], axis=axis)
                for place, part in zip(places, parts, strict=True)
            ]
        if opset < 13:
            return [helper.make_node("Split", [x], parts, axis=axis, split=sizes.tolist())]
        return [helper.make_node("Split", [x, values.constant("sizes", sizes)], parts, axis=axis)]
