"""Attacks in, one record per image out."""
