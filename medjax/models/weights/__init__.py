"""Weights of other frameworks, read without them and without trust."""
