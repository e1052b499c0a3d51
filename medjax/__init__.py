"""medjax: train, evaluate and explain models that read medical images."""

__version__ = "0.1.0"
