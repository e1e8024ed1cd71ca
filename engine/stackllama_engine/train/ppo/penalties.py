"""Rules that take from a response's score: for length, and for saying the same again. Numbers in, numbers out.

Against a known way of cheating a reward model: StackLLaMA's policy learned to repeat code fences
(https://huggingface.co/blog/stackllama).
"""

from collections.abc import Sequence


def excess_length(tokens: int, start: int) -> int:
    """Tokens beyond ``start``; 0 for a response that is not longer."""
    return max(0, tokens - start)


def repeated_share(ids: Sequence[int], n: int) -> float:
    """Share of a response's n-grams that stand in it before: 1 − distinct-n (arXiv:1510.03055, section 5).

    Args:
        ids: the response's tokens, without its end token.
        n: tokens of an n-gram.

    Returns:
        0 where no n-gram comes twice (or there is none), near 1 where one is repeated over and over.
    """
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
