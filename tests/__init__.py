"""Tests: unit (no root, no sleeping), netns, vm, and the benchmarks."""
