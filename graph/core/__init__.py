"""A network as data: tensors, operators, shapes, and its convolutions."""
