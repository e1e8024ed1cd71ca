"""Incremental readers for run directories and other files. Without Textual and torch; safe to use from a thread."""
