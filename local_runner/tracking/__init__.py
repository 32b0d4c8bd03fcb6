"""Where a run's numbers go besides its run directory: MLflow, TensorBoard."""
