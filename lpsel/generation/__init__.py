"""Generate answers to prompts."""
