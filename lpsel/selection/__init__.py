"""From scores to a subset: pure functions of tables, without torch or transformers."""
