"""The cohort: patients, splits, duplicates, and the weight of each example."""
