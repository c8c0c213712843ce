"""Select the few instruction-tuning rows that matter with a small model, train the large one on those."""

__version__ = "0.1.0"
