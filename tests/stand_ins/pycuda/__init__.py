"""Stand-in for pycuda, which is `pycuda.driver` alone."""
