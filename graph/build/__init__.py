"""Turns a plan into programs and buffers: kernels, placements, steps, memory."""
