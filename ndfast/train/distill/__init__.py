"""The frozen teacher, what is kept of it, the student beside it, and what is measured of both."""
