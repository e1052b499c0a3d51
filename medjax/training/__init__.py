"""State, step, checkpoint and loop."""
