"""Scores from the training loops of other frameworks."""
