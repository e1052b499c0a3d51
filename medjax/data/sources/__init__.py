"""Layouts of raw data: each is read into items, a row and its pixels."""
