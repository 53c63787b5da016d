"""Training: the loop, the schedule, checkpoints and logs."""
