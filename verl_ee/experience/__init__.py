"""Expert data, branching from expert states, and what came back. Knows neither verl nor torch."""
