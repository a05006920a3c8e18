"""Quantise a network after training: grids for activations and weights, from example inputs.

`scope` says which tensors become 8-bit integers, `channels` which of their channels can be divided
by factors, and `equalise` evens these out. `observe` collects values on calibration data and
`ranges` turns them into grids. `effects` measures what rounding tensors does to the outputs, and
`refine` chooses other ranges by that. `patches` collects what the filters of a layer see,
`rounding` rounds their weights accordingly. `network` does all of it in order, `simulate` shows
what it costs. `sensitivity` measures that for each tensor and layer alone, and by it `control` lets
layers stay in float32.
"""
