"""Texts about executed transitions: who writes them, how many at a time, and how they are kept."""
