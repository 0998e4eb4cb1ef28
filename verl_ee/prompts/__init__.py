"""The state that an agent sees, the prompt that shows it, and the response read back."""
