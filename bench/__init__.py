"""Measurements of the whole server, kept with commit, machine and versions: `python -m bench`. See bench/README.md."""
