"""A network as data: tensors, operators, shapes, and the convolutions in it."""
