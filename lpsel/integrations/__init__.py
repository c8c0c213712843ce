"""Record scores in the training loops of other frameworks."""
