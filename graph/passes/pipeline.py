"""Decides which passes rewrite a graph, and in which order."""

from __future__ import annotations

from collections.abc import Callable

from fastrun.graph.core.model import Graph
from fastrun.graph.passes.absorb_shuffles import absorb_shuffles
from fastrun.graph.passes.attention import recognise_attention
from fastrun.graph.passes.cleanup import drop_identities, fold_constants, fold_padding
from fastrun.graph.passes.crop_filters import crop_filters
from fastrun.graph.passes.fold_affine import fold_affine, fold_input_scale, normalise_affine
from fastrun.graph.passes.fuse import fuse_activation, fuse_add, fuse_bias
from fastrun.graph.passes.merge_parallel import merge_parallel
from fastrun.graph.passes.patterns import (
    fold_into_layer_norm,
    merge_moves,
    recognise_channel_shuffle,
    recognise_gates,
    recognise_group_norm,
    recognise_layer_norm,
    recognise_signs,
)
from fastrun.graph.passes.products import (
    convolve_dense,
    convolve_products,
    densify,
    separate_rows,
    sink_transposes,
)
from fastrun.graph.passes.rounding import (
    drop_implied_limits,
    drop_repeated_rounding,
    fit_biases,
    round_inputs,
    spread_rounding,
)
from fastrun.graph.passes.tabulate import tabulate
from fastrun.graph.passes.transposed import convolve_transposed

Pass = Callable[[Graph], Graph]

PASSES: tuple[Pass, ...] = (
    drop_identities,
    fold_constants,
    drop_repeated_rounding,
    drop_implied_limits,
    recognise_channel_shuffle,
    merge_moves,
    recognise_gates,
    recognise_signs,
    recognise_layer_norm,
    fuse_bias,
    separate_rows,
    recognise_attention,
    convolve_products,
    merge_moves,
    drop_identities,
    sink_transposes,
    merge_moves,
    drop_identities,
    fold_padding,
    crop_filters,
    recognise_group_norm,
    normalise_affine,
    fold_into_layer_norm,
    fold_affine,
    fold_input_scale,
    merge_parallel,
    fuse_add,
    densify,
    fuse_activation,
    convolve_transposed,
    absorb_shuffles,
    spread_rounding,
    convolve_dense,
    fit_biases,
    round_inputs,
    tabulate,
)


def optimise(graph: Graph) -> Graph:
    """Run every pass of `PASSES`.

    The order has reasons. Patterns are recognised first, while their scales are as exported.
    Products become convolutions before scales fold into weights. Scales fold before anything is
    fused, because they fold only into a linear convolution. Added convolutions merge if they can,
    else one becomes the residual of the other. Adds are fused before activations, because the
    epilogue applies them in this order. Transposed convolutions become convolutions when all that
    follows them is fused. Shuffles come last, when their readers are convolutions.
    What a quantised network rounds is told from its file first, and settled last of all.
    """
    for run in PASSES:
        graph = run(graph)
    return graph
