"""The shapes of a model's inputs as far as the model gives them: some sizes may be open."""

from __future__ import annotations

from fastrun.graph.core.model import Shape

Sizes = tuple[int | str, ...]
"""Sizes along the axes, with a name in the place of one that is open: (N, 3, H, W)."""


def fits(shape: Shape, sizes: Sizes | None) -> bool:
    """Whether an input of these sizes may have a shape; without sizes it may have any."""
    return sizes is None or (
        len(shape) == len(sizes)
        and all(n == size or isinstance(size, str) for n, size in zip(shape, sizes, strict=True))
    )


def is_open(sizes: Sizes | None) -> bool:
    """Whether a size is not given."""
    return sizes is None or any(isinstance(size, str) for size in sizes)


def usual_shape(sizes: Sizes | None) -> Shape | None:
    """The shape with 1 for an open batch size; None if another size is open."""
    if sizes is None:
        return None
    known = tuple(n for n in sizes if isinstance(n, int))
    if len(known) == len(sizes):
        return known
    return (1, *known) if len(known) == len(sizes) - 1 and isinstance(sizes[0], str) else None


def example_shape(sizes: Sizes | None) -> Shape:
    """A shape that an input may have: a picture of 224 x 224 where sizes are open."""
    if sizes is None:
        return (1, 3, 224, 224)
    first = tuple(n if isinstance(n, int) else 1 for n in sizes[:1])
    return (*first, *(n if isinstance(n, int) else 224 for n in sizes[1:]))


def sizes_text(sizes: Sizes | None) -> str:
    """Sizes as Python writes a shape, open ones by their names: `(N, 3, H, W)`."""
    if sizes is None:
        return "any shape"
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"


def advice(name: str, sizes: Sizes | None) -> str:
    """How to give the shape of an input, in a command and in Python."""
    likely = example_shape(sizes)
    words = "x".join(map(str, likely))
    return f"`--shape {name}={words}`, or {{{name!r}: {likely}}} in Python, with your sizes"
