"""What to run: networks.

In the order of processing: `networks` finds a model (`zoo` writes the built-in ones),
`onnx_import` walks it and `lowering` turns ONNX's operators into those of `ops`; `model` is the
graph, `passes` and `patterns` rewrite it through `edit`; `problems` lists its convolutions;
`reference` evaluates it in float64.

To run it: `tasks` lists what is to be done, `choices` and `forms` how each of that could be done,
`layout` picks one way for each, which `plan` keeps as a file; `arrange` lays the tensors out,
`build` and `strided` get the kernels, `steps` puts all in order, `memory` gives every buffer its
place, and `executor` runs it. `onnx_backend` offers all that by ONNX's interface for backends.
"""
