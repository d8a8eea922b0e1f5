"""Benchmarks: figures in one run, side by side; never part of a timed test."""
