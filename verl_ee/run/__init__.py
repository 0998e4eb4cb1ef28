"""A run's own files, typed once, and the paths of everything else that a run leaves in its folder."""
