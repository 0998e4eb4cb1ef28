"""Self-reflection: rationales for the expert's actions, grounded in executed outcomes and judged by gates."""
