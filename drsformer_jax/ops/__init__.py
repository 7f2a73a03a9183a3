"""Pure functions on arrays. Which implementation runs on CPU, GPU or TPU is decided within."""
