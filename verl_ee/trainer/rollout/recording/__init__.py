"""Demonstrations played through the agent loops of a job."""
