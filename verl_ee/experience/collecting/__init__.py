"""Collecting: branch every state of an expert file, skip known outcomes, and keep each new outcome at once."""
