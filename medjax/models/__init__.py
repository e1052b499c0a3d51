"""Networks: the only place that imports flax."""
