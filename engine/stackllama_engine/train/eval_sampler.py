"""Samples of a model in training: responses to a few held-out prompts."""

from typing import Any

import torch

from ..contract.chat_messages import Ask
from ..contract.recipe import PreferenceRecipe, SFTRecipe
from ..contract.stages import Split
from ..data.sources import unique_questions
from .chat.answer import tokens
from .control import LeftEarly, Requests
from .encoding import Encoder, Messages, source_rows

_QUESTIONS = 4
_TOKENS = 128
_ROWS = 200  # searched for that many different questions


class EvalSampler:
    """Generates greedy responses to the first held-out prompts, which are the same each time.

    Args:
        recipe: names the questions' source.
        encoder: of the run's prompt format.
        requests: a stop cancels a response.
    """

    def __init__(self, recipe: SFTRecipe | PreferenceRecipe, encoder: Encoder, requests: Requests) -> None:
        self._recipe = recipe
        self._encoder = encoder
        self._requests = requests
        self._rows: list[dict[str, Any]] = []

    def rows(self, model: Any) -> list[dict[str, Any]]:
        """Generate one row per prompt, as in ``samples.jsonl``; fewer when a stop came. Nothing random is drawn."""
        self._rows = self._rows or self._read()
        rows: list[dict[str, Any]] = []
        was_training = model.training
        model.eval()
        try:
            for row in self._rows:
                rows.append(self._respond(model, row["question"], row.get("messages")))
        except LeftEarly:
            pass
        finally:
            model.train(was_training)
        return rows

    def _respond(self, model: Any, question: str, messages: Messages | None) -> dict[str, Any]:
        ids: list[int] = []
        ask = Ask(id=0, prompt=question, temperature=0.0, max_new_tokens=_TOKENS)
        prompt = self._encoder.prompt(question, messages)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=self._recipe.bf16):
            for token in tokens(model, prompt, self._encoder.stop_ids, ask):
                self._requests.leave_early()
                ids.append(token)
        ended = bool(ids) and ids[-1] in self._encoder.stop_ids
        text = self._encoder.tokenizer.decode(ids, skip_special_tokens=True)
        return {
            "question": question,
            "response": str(text).strip(),
            "length": len(ids),
            "ended": ended,
            "split": Split.EVALUATION.value,
            "when": "asked",
        }

    def _read(self) -> list[dict[str, Any]]:
        rows = source_rows(self._recipe, self._recipe.dataset_test_split, ("question", "response_j"), _ROWS)
        return [dict(row) for row, _ in zip(unique_questions(rows), range(_QUESTIONS), strict=False)]
