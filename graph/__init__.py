"""Networks: read them, rewrite them, plan them, run them.

In the order of processing: `networks` finds a model (`zoo` has the built-in ones), `frontend`
turns ONNX into the graph of `core`, `passes` rewrite the graph, and `reference` evaluates it in
float64. `plan` decides how each task runs, `planner` makes a whole plan, `build` turns the plan
into programs and buffers, and `runtime` runs them. `onnx_backend` offers all of this through
ONNX's interface for backends.
"""
