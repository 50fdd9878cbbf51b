"""The four levels over several models: a plan of units of work, and what came of it."""
