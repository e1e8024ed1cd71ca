"""Rules that choose a response without the reward model: a longer one, a more formatted one, one with better words."""

import re
from collections.abc import Sequence

import numpy as np
import torch

from .statistics import Array

_FORMATTING = re.compile(r"^\s*(?:#{1,6} |[-*+] |\d+[.)] |> |```)|\*\*|`[^`\n]+`|\[[^\]\n]+\]\([^)\n]+\)", re.M)
"""Markdown: headings, list items, quotes, code, bold text, links."""
_WORD = re.compile(r"\w+|[^\w\s]")
_FEATURES = 4096
_MOST_PAIRS = 4000
_BLOCK = 1000  # held-out pairs whose words are counted at a time
_STRENGTH = 1e-3
_STEPS = 60


def formatting(text: str) -> int:
    """Count the marks of Markdown in a text."""
    return len(_FORMATTING.findall(text))


def repetition(ids: Sequence[int], n: int = 3) -> float:
    """Return the share of n-grams that occurred before (1 − distinct-n, arXiv:1510.03055); 0 without any."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def word_margins(train: Sequence[tuple[str, str]], held_out: Sequence[tuple[str, str]]) -> Array:
    """Return the margins ``[N]`` that a linear model of words gives to held-out pairs.

    A Bradley-Terry model of hashed word counts (log(1 + count)), fitted on training pairs with an L2 penalty: what can
    be told from words alone, without their order and without the prompt.

    Args:
        train: (chosen, rejected) texts; the first 4000 are used.
        held_out: likewise.
    """
    features = torch.from_numpy(_differences(train[:_MOST_PAIRS]))  # [n, F]
    weights = torch.zeros(_FEATURES, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -torch.nn.functional.logsigmoid(features @ weights).mean() + _STRENGTH * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    fitted = weights.detach().numpy()
    blocks = [held_out[start : start + _BLOCK] for start in range(0, len(held_out), _BLOCK)]
    return np.concatenate([_differences(block) @ fitted for block in blocks]).astype(np.float64)


def _differences(pairs: Sequence[tuple[str, str]]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    rows = np.zeros((len(pairs), _FEATURES), dtype=np.float32)
    for row, texts in zip(rows, pairs, strict=True):
        for sign, text in zip((1, -1), texts, strict=True):
            counts: dict[int, int] = {}
            for word in _WORD.findall(text.lower()):
                place = _place(word)
                counts[place] = counts.get(place, 0) + 1
            for place, count in counts.items():
                row[place] += sign * np.log1p(count)
    return rows


def _place(word: str) -> int:
    """Hash a word; the same in every process."""
    value = 2166136261
    for byte in word.encode():  # FNV-1a
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value % _FEATURES
