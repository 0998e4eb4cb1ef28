"""The command `verl-ee`: one module per command."""
