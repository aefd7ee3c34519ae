"""Readers of untrusted files: zips, pickles and old torch files, within the memory of their size, running no code."""
