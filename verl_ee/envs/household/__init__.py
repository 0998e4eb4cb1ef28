"""A household in text: find things, clean, heat or cool them, put them away, look at them under a lamp."""
