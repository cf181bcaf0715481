"""Students by several methods from the same seeds."""
