"""Properties of the machine: peak, bandwidths, noise."""
