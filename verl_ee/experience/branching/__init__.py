"""Branching at the states of an expert: return to a state, prove it, execute one alternative, record the outcome."""
