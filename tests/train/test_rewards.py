"""The parts of a reward, by numbers worked by hand."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.recipe import PPORecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage
from stackllama_engine.train.ppo import rewards as rewards_module
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.rewards import Rewards, excess_length, fill_abstained, repeated_share

EOS = 2


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write a module that can be imported; forget it afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> None:
        (tmp_path / "part_rewards.py").write_text(source)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(("tokens", "start", "excess"), [(5, 5, 0), (4, 5, 0), (9, 5, 4), (3, 0, 3)])
def test_excess_length(tokens: int, start: int, excess: int) -> None:
    assert excess_length(tokens, start) == excess


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [
        ([1, 2, 3, 4], 2, 0.0),
        ([1, 2, 1, 2, 1], 2, 0.5),  # 12 21 12 21: two of four stood there before
        ([7] * 10, 3, 7 / 8),  # eight trigrams, all the same
        ([7, 7], 3, 0.0),  # too short for one
        ([], 1, 0.0),
        ([5, 5, 6, 5], 1, 0.5),
    ],
)
def test_repeated_share(ids: list[int], n: int, share: float) -> None:
    assert repeated_share(ids, n) == share


class Judge:
    """A reward model with the same scores for every text."""

    def __init__(self, *scores: float) -> None:
        self._scores = scores

    def __call__(self, texts: Any, micro_batch_size: int, tokens: int | None = None) -> torch.Tensor:
        return torch.tensor(self._scores)


def recipe_of(*keys: str) -> PPORecipe:
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "reward_model_path=reward", *keys])
    assert isinstance(recipe, PPORecipe)
    return recipe


def test_the_score_is_the_weighted_sum_of_its_parts(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        "def score(questions, responses): return [len(q) + 10 * len(r) for q, r in zip(questions, responses)]\n"
        "async def watch(prompts, completions, answer, scale): return [scale * float(one) for one in answer]\n"
    )
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0, -2.0))
    recipe = recipe_of(
        "reward_funcs=part_rewards:score,part_rewards:watch",
        "reward_model_weight=2",
        "reward_weights=[-0.5, 0]",
        "reward_kwargs={scale: 3}",
        "length_penalty=0.25",
        "length_penalty_start=3",
        "repetition_penalty=8",
        "repetition_n_grams=2",
    )
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    encoder: Any = SimpleNamespace(stop_ids=(EOS,))
    rewards = Rewards(recipe, base, encoder, SimpleNamespace(health=print))  # type: ignore[arg-type]
    texts = [
        ResponseText("why", "so", True, columns={"answer": "1"}),
        ResponseText("?", "x", False, columns={"answer": "2"}),
    ]
    # 5 tokens, the end among them but in no bigram: 7 8, 8 7, 7 8; and 4 tokens without an end: 9 9, 9 9, 9 2
    parts = rewards.components(texts, [[7, 8, 7, 8, EOS], [9, 9, 9, 3]], micro_batch_size=2)
    assert {name: values.tolist() for name, values in parts.items()} == {
        "reward/model": [1.0, -2.0],
        "reward/score": [23.0, 11.0],
        "reward/watch": [3.0, 6.0],
        "reward/length_penalty": [-0.5, -0.25],
        "reward/repetition_penalty": pytest.approx([-8 / 3, -8 / 3]),
    }
    assert rewards.total(parts).tolist() == pytest.approx([2 - 11.5 - 0.5 - 8 / 3, -4 - 5.5 - 0.25 - 8 / 3])


def test_components_that_are_off_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    rewards = Rewards(recipe_of(), base, SimpleNamespace(stop_ids=(EOS,)), None)  # type: ignore[arg-type]
    parts = rewards.components([ResponseText("q", "a", True)], [[EOS]], micro_batch_size=1)
    assert list(parts) == ["reward/model"] and torch.equal(rewards.total(parts), parts["reward/model"])


def test_an_abstention_adds_nothing_and_without_a_reward_model_scores_the_mean(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(
        "def score(responses): return [None, 2.0, 4.0]\n"
        "def other(responses): return [None, None, 1.0]\n"
        "def watch(responses): return [7.0, 7.0, 7.0]\n"
    )
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0, 1.0, math.nan))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    encoder: Any = SimpleNamespace(stop_ids=(EOS,))
    reporter: Any = SimpleNamespace(health=print)
    texts, tokens = [ResponseText("q", "a", True)] * 3, [[5, EOS]] * 3
    both = Rewards(recipe_of("reward_funcs=part_rewards:score"), base, encoder, reporter)
    parts = both.components(texts, tokens, micro_batch_size=3)
    assert not both.abstained(parts).any()
    assert str(both.total(parts).tolist()) == "[1.0, 3.0, nan]"  # NaN of a model is an error, and stays one
    alone = Rewards(recipe_of("reward_funcs=part_rewards:score", "length_penalty=1"), base, encoder, reporter)
    alone._model = None
    parts = alone.components(texts, tokens, micro_batch_size=3)
    scores = alone.total(parts)
    assert alone.abstained(parts).tolist() == [True, False, False]
    assert fill_abstained(scores, alone.abstained(parts), lambda part: part).tolist() == [1.0, 0.0, 2.0]
    nobody = torch.ones(3, dtype=torch.bool)
    assert fill_abstained(scores, nobody, lambda part: part).isnan().all()
    keys = ("reward_funcs=[part_rewards:score, part_rewards:other, part_rewards:watch]", "reward_weights=[1, 10, 0]")
    several = Rewards(recipe_of(*keys), base, encoder, reporter)
    several._model = None
    parts = several.components(texts, tokens, micro_batch_size=3)
    assert several.abstained(parts).tolist() == [True, False, False], "a weight of 0 judges nothing"
    assert str(several.total(parts).tolist()) == "[nan, 2.0, 14.0]"


def test_options_that_no_function_takes_are_refused(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written("def score(responses, scale=1): return [1.0 for _ in responses]\n")
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    recipe = recipe_of("reward_funcs=part_rewards:score", "reward_kwargs.skale=2")
    with pytest.raises(StageError, match="`reward_kwargs` has `skale`, and none of `reward_funcs` has such a"):
        Rewards(recipe, base, SimpleNamespace(stop_ids=(EOS,)), SimpleNamespace(health=print))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "keys", "read"),
    [
        ("responses, answer", (), {"answer"}),
        ("completions, **kwargs", (), None),
        ("completions, **kwargs", ("reward_columns=[answer]",), {"answer"}),
        ("completions, level, **kwargs", ("reward_columns=[]",), {"level"}),
    ],
)
def test_columns_read_are_all_where_a_function_takes_any(
    written: Any, monkeypatch: pytest.MonkeyPatch, head: str, keys: tuple[str, ...], read: Any
) -> None:
    written(f"def score({head}): return []\n")
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    recipe = recipe_of("reward_funcs=part_rewards:score", *keys)
    rewards = Rewards(recipe, base, SimpleNamespace(stop_ids=(EOS,)), SimpleNamespace(health=print))  # type: ignore[arg-type]
    assert rewards.columns_read == read
