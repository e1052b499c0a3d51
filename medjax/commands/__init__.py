"""One file a command of launch.py, read from top to bottom."""
