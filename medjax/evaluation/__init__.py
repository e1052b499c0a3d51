"""Predictions -> numbers with intervals.

Everywhere in this room `tasks` are T names, `patient` is [N] integers, the unit that is
resampled, and `draws` are `key` and `replicates`, those of bootstrap.resample.
"""
