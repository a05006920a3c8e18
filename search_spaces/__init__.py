"""What to try: one space per algorithm, same stem as in kernels/conv."""
