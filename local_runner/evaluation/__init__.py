"""What a model is worth on held-out rows: losses, a task's metric, a benchmark; before and after."""
