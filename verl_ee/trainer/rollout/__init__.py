"""Work for the rollout servers of a job: proposals, texts, episodes; and demonstrations played through agent loops."""
