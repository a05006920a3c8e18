"""What the machine can do: peak, bandwidths, noise."""
