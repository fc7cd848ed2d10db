"""Tables and plots of the committed results.

Each table stands between two marker lines of a page; `python -m bench table` writes them.
"""
