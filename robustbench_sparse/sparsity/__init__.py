"""Zeros: counted in the file, held against what was claimed, and cut out for real."""
