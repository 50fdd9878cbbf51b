"""Lightning callbacks that every run has: checkpoints, seeds, progress, results."""
