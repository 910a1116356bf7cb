"""Microbenchmarks of memory and latency."""
