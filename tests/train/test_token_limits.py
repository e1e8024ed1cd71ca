"""Out of memory with micro-batches by tokens: half as many tokens, to no less than the longest row or pair has."""

from types import SimpleNamespace
from typing import Any

import pytest

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.__main__ import _begin_again
from stackllama_engine.train.faults import BatchSizes

PPO = ("reward_model_path=unused", "max_prompt_length=65", "response_length=36")  # up to 64 + 36 tokens


class Reporter:
    current_phase = "update"

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.health = self.notices.append


def batch_sizes(tokens: int) -> tuple[BatchSizes, Any, list[dict[str, int]]]:
    words = ("model_name_or_path=demo", *PPO, f"max_tokens_per_micro_batch={tokens}")
    recipe, reporter, notes = load_recipe(Stage.PPO, None, words), Reporter(), list[dict[str, int]]()
    assert isinstance(recipe, PPORecipe)
    return BatchSizes(recipe, reporter, lambda **changes: notes.append(changes)), reporter, notes  # type: ignore[arg-type]


def test_the_update_halves_tokens_until_one_response_is_left() -> None:
    sizes, reporter, notes = batch_sizes(300)
    for expected in (150, 100):
        sizes.halve_micro_batch()
        assert sizes.micro_batch_tokens == expected
    assert notes == [{"max_tokens_per_micro_batch": 150}, {"max_tokens_per_micro_batch": 100}]
    assert "`max_tokens_per_micro_batch: 150` on every rank (was 300)" in reporter.notices[0]
    with pytest.raises(StageError, match="phase update with micro-batches of one response"):
        sizes.halve_micro_batch()


@pytest.mark.parametrize(("phase", "tokens", "rows"), [("rollout", 400, 8), ("score", 200, 16), ("evaluate", 200, 8)])
def test_sampling_halves_rows_and_scoring_tokens(phase: str, tokens: int, rows: int) -> None:
    sizes, reporter, _ = batch_sizes(400)
    reporter.current_phase = phase
    sizes.halve_rollout_micro_batch()
    assert (sizes.micro_batch_tokens, sizes.rollout_micro_batch_size) == (tokens, rows)


def test_a_limit_below_one_full_row_is_refused() -> None:
    with pytest.raises(Exception, match="make up to 100 tokens; raise it"):
        batch_sizes(99)


@pytest.mark.parametrize(("tokens", "smaller"), [(2048, 1024), (1200, 1024), (1024, None)])
def test_reward_training_begins_again_with_half_the_tokens(tokens: int, smaller: int | None) -> None:
    words = ("model_name_or_path=demo", "max_length=512", f"max_tokens_per_micro_batch={tokens}")
    begun: list[dict[str, Any]] = []
    session: Any = SimpleNamespace(rank=0, world_size=1, reporter=SimpleNamespace(current_phase="train"))
    session.restarts = SimpleNamespace(again=lambda **changes: begun.append(changes))
    _begin_again(MemoryError(), load_recipe(Stage.REWARD, None, words), session)  # type: ignore[arg-type]
    assert [each["max_tokens_per_micro_batch"] for each in begun] == ([] if smaller is None else [smaller])
