"""Answers of models to prompts."""
