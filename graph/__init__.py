"""What to run: networks.

In the order of processing: `networks` finds a model (`zoo` writes the built-in ones), `frontend`
reads ONNX into the graph of `core`, `passes` rewrite the graph, `reference` evaluates it in
float64. `plan` decides how each task runs, `planner` makes a whole plan, `build` turns it into
programs and buffers, and `runtime` runs them. `onnx_backend` offers all of that by ONNX's
interface for backends.
"""
