"""Users of a job's rollout servers: proposals, texts, episodes; and demonstrations played through agent loops."""
