"""Asynchronous v2 clients, for benchmarks and tests."""
