"""Early experience (arXiv 2510.08558) for verl: branch from expert states, mid-train on what came back, go on to GRPO."""

__version__ = "0.1.0"
