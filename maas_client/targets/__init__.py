"""The places where a job can run. Targets do not know each other."""
