"""Select the instruction-tuning rows that matter with a small model, and train a large model on them."""

__version__ = "0.1.0"
