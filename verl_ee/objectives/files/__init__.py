"""Files of examples: as text, as token ids, and as the recordings of agent loops."""
