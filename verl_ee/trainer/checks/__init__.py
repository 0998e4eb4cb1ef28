"""Refusals of a composed job before Ray starts."""
