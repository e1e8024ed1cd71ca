"""Reward functions that are wrong on purpose, for the recordings of ``scripts/health_series.py``."""


def constant(completions: list[str]) -> list[float]:
    """Score every response alike: nothing can be learned."""
    return [1.0] * len(completions)


def length(completions: list[str]) -> list[float]:
    """Score the number of characters: longer is better, whatever it says."""
    return [len(text) / 50 for text in completions]
