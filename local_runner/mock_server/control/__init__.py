"""What only the mock has: faults, time, journal, snapshots, and its own description."""
