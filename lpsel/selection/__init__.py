"""From scores to a subset, without torch: pure functions of tables, and the clusters that they may need."""
