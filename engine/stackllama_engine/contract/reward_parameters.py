"""Parameters of reward functions: which columns they read, and which of ``reward_kwargs`` is for none of them.

A launch has them from a function's source, a stage from the function itself.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from .recipe import REWARD_ARGUMENTS, PPORecipe


class Parameters(Struct, frozen=True):
    """Parameters of a function that is called with keywords."""

    names: frozenset[str]
    takes_any: bool = False
    """Whether it has ``**kwargs``."""


def columns_read(recipe: PPORecipe, functions: Sequence[Parameters | None]) -> set[str] | None:
    """Return the columns that a recipe's reward functions read; None: all of them, as far as anybody can tell.

    Args:
        recipe: names further columns in ``reward_columns``.
        functions: of its functions; None for one whose parameters are not known.
    """
    if recipe.reward_columns is None and any(one is None or one.takes_any for one in functions):
        return None
    named = {name for one in functions if one for name in one.names}
    return named - REWARD_ARGUMENTS | set(recipe.reward_columns or ())


def unused_option(functions: Sequence[Parameters | None], options: Iterable[str]) -> str | None:
    """Return a message about one of ``reward_kwargs`` that no function takes; None if there is none.

    Args:
        functions: of the recipe; None for one whose parameters are not known.
        options: names in ``reward_kwargs``.
    """
    if any(one is None or one.takes_any for one in functions):
        return None
    taken = {name for one in functions if one for name in one.names}
    unused = next((name for name in options if name not in taken), None)
    return unused and f"`reward_kwargs` has `{unused}`, and none of `reward_funcs` has such a parameter."
