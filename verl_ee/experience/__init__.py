"""Experience: expert files, branching from expert states, and the store of the outcomes."""
