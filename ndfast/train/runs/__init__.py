"""One student from its config to the files in its folder."""
