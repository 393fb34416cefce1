"""A model made ready for a CPU: weights laid out once, and kernels of our own."""
