"""Tests of what goes out to other benchmarks, and comes in from others."""
