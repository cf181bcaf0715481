"""What a run is made of: its fields, their flags, the methods."""
