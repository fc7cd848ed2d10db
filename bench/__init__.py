"""Measurements of the whole server, with their provenance: `python -m bench`. See bench/README.md."""
