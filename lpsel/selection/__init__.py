"""Select a subset from scores: pure functions of tables, without torch."""
