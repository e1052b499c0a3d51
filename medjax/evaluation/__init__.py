"""Predictions -> numbers with intervals.

Everywhere in this room `tasks` are T names, `patient` is [N] integers, the unit that is
resampled, and `key` and `replicates` are those of bootstrap.resample.
"""
