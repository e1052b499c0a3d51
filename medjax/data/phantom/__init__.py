"""Synthetic films and scans with known truth."""
