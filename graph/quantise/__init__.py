"""Quantise a network after training: grids for activations and weights, from example inputs.

`scope` says which tensors become 8-bit integers, `equalise` evens out the channels of depthwise
layers, `observe` collects values on calibration data and `ranges` turns them into grids. `patches`
collects what the filters of a layer see, `rounding` rounds their weights accordingly. `network`
does all of it in order, `simulate` shows what it costs.
"""
