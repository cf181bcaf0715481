"""Adapters for other people's trainers: a file a framework, imported only where it is used."""
