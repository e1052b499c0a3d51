"""Config -> parts: the only room that reads a config or turns a name into code."""
