"""Circuits: subsets of the channels of a frozen vision transformer that are enough for a task."""
