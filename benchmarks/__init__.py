"""Time and memory of the matching and of a training step; see the command lines in matching.py and training_step.py."""
