"""One training: steps, epochs, and what watches them."""
