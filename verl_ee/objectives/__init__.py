"""From what was collected to what is trained on: examples, their schedule, and the one loss."""
