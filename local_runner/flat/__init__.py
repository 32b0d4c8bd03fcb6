"""The fast way to train: rows end to end, one product a projection, nothing computed that no loss sees."""
