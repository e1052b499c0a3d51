"""Random changes of a training image that keep its label."""
