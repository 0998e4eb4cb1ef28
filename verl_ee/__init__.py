"""Early experience (arXiv 2510.08558) for verl: branch from expert states, mid-train, go on to GRPO."""

__version__ = "0.2.0"
