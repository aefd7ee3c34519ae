"""Readers of files from strangers: zips, pickles and old torch files, within their own size and running no code."""
