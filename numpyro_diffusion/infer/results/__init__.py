"""What kernels and runs return, as ArviZ's data."""
