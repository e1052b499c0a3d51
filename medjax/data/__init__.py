"""The way in: raw files -> records -> batches."""
