"""Rows of the stages that train on a fixed data set as tokens: the same in training and in a preview."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..contract.recipe import SFTRecipe
from .encoding import Encoder


class Supervised(NamedTuple):
    """A row of fine-tuning: token ids of the prompt, and of the response with its end."""

    prompt: list[int]
    response: list[int]


class Pair(NamedTuple):
    """A row of the reward model: token ids of the prompt with either response."""

    chosen: list[int]
    rejected: list[int]


class Preference(NamedTuple):
    """A row of the preference stage: token ids of the prompt, and of either response with its end."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def supervised(encoder: Encoder, row: Mapping[str, Any]) -> Supervised:
    """Encode a row of fine-tuning.

    Raises:
        DataError: the chat template refuses the conversation.
    """
    question, messages = row["question"], row.get("messages")
    response = encoder.answer(question, encoder.trimmed(row["response_j"]), messages)
    return Supervised(encoder.prompt(question, messages), response)


def trains_on_responses_alone(recipe: SFTRecipe, encoder: Encoder) -> bool:
    """Return `assistant_only_loss`, which is true for a chat where it is left empty."""
    return encoder.format.kind == "chat" if recipe.assistant_only_loss is None else recipe.assistant_only_loss


def preference(encoder: Encoder, row: Mapping[str, Any]) -> Preference:
    """Encode a row of the preference stage; prompt and responses are tokenised apart, as in fine-tuning.

    Raises:
        DataError: the chat template refuses the conversation.
    """
    question, messages = row["question"], row.get("messages")
    chosen, rejected = (
        encoder.answer(question, encoder.trimmed(row[column]), messages) for column in ("response_j", "response_k")
    )
    return Preference(encoder.prompt(question, messages), chosen, rejected)


def pair(encoder: Encoder, row: Mapping[str, Any]) -> Pair:
    """Encode a row of the reward model.

    Raises:
        DataError: the chat template refuses the conversation.
    """
    question, messages = row["question"], row.get("messages")
    return Pair(*(encoder.text_ids(question, row[need], messages) for need in ("response_j", "response_k")))
