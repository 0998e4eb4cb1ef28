"""Environments of episodes, each in a process of its own that may hang or crash: a pool, the processes, their host."""
