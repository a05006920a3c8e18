"""From a plan to programs and buffers: kernels, placements, steps, memory."""
