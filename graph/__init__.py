"""What to run: networks.

In the order of processing: `networks` finds a model (`zoo` writes the built-in ones),
`onnx_import` walks it and `lowering` turns ONNX's operators into those of `ops`; `model` is the
graph, `passes` and `patterns` rewrite it through `edit`; `problems` lists its convolutions;
`reference` evaluates it in float64.
"""
