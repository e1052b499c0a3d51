"""The training step, its state, the loop around it, and what a run leaves behind."""
