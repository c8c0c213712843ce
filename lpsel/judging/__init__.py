"""Judges decide which of two answers is better."""
