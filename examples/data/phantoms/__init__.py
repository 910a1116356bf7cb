"""Drawn data sets, which need no file."""
