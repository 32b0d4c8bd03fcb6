"""The ground floor: what a job file, a training row, a limit and a run directory are."""
