"""Synthetic films and scans with known truth, drawn analytically."""
