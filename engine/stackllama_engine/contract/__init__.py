"""The vocabulary that console and engine share: recipes, stages, events, run directories, errors.

Imports msgspec, PyYAML and the standard library only; imports neither half.
"""
