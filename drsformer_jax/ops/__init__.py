"""Pure functions on arrays. How each runs on CPU, GPU or TPU is decided inside it."""
