"""The parts of a reward, by numbers worked by hand, and what a function of the user's may do wrong."""

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
from stackllama_engine.train.ppo.reward_function import RewardFunction
from stackllama_engine.train.ppo.rewards import (
    ResponseText,
    Rewards,
    abstained,
    excess_length,
    fill_abstained,
    repeated_share,
)

EOS = 2
TEXTS = ["a", "bb\x1b[31m", "ccc " * 50]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    """Write a module and load a function of it; forget both afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def write(body: str, name: str = "toy_rewards") -> RewardFunction:
        (tmp_path / f"{name}.py").write_text(f"import math\ndef score(*, questions, responses):\n    {body}\n")
        return RewardFunction(f"{name}:score", str(tmp_path), lambda _: None, lambda _: None)

    yield write
    sys.path[:] = path
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

    def __call__(self, texts: Any, micro_batch_size: int) -> torch.Tensor:
        return torch.tensor(self._scores)


def recipe_of(*keys: str) -> PPORecipe:
    recipe = load_recipe(Stage.PPO, None, ["model_name_or_path=demo", "reward_model_path=reward", *keys])
    assert isinstance(recipe, PPORecipe)
    return recipe


def test_the_score_is_the_weighted_sum_of_its_parts(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written("return [len(q) + 10 * len(r) for q, r in zip(questions, responses)]")
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0, -2.0))
    recipe = recipe_of(
        "reward_fn=toy_rewards:score",
        "reward_model_weight=2",
        "reward_fn_weight=-0.5",
        "length_penalty=0.25",
        "length_penalty_start=3",
        "repetition_penalty=8",
        "repetition_n_grams=2",
    )
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    tokenizer: Any = SimpleNamespace(eos_token_id=EOS)
    rewards = Rewards(recipe, base, tokenizer, SimpleNamespace(health=print))  # type: ignore[arg-type]
    texts = [ResponseText("why", "so", True), ResponseText("?", "x", False)]
    # 5 tokens, the end among them but in no bigram: 7 8, 8 7, 7 8; and 4 tokens without an end: 9 9, 9 9, 9 2
    parts = rewards.components(texts, [[7, 8, 7, 8, EOS], [9, 9, 9, 3]], micro_batch_size=2)
    assert {name: values.tolist() for name, values in parts.items()} == {
        "reward/model": [1.0, -2.0],
        "reward/function": [23.0, 11.0],
        "reward/length_penalty": [-0.5, -0.25],
        "reward/repetition_penalty": pytest.approx([-8 / 3, -8 / 3]),
    }
    assert rewards.total(parts).tolist() == pytest.approx([2 - 11.5 - 0.5 - 8 / 3, -4 - 5.5 - 0.25 - 8 / 3])


def test_components_that_are_off_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    rewards = Rewards(recipe_of(), base, SimpleNamespace(eos_token_id=EOS), None)  # type: ignore[arg-type]
    parts = rewards.components([ResponseText("q", "a", True)], [[EOS]], micro_batch_size=1)
    assert list(parts) == ["reward/model"] and torch.equal(rewards.total(parts), parts["reward/model"])


@pytest.mark.parametrize(
    "body",
    [
        "return [1, 2.5, True]",
        "return (x for x in (1, 2.5, True))",
        "import torch; return torch.tensor([1, 2.5, 1])",
        "import numpy; return numpy.array([1, 2.5, 1])",
        "import torch; return [torch.tensor(1), torch.tensor(2.5), 1]",
        "import torch; return torch.tensor([[1], [2.5], [1]])",
    ],
)
def test_numbers_of_any_kind_are_taken(written: Any, body: str) -> None:
    assert written(body)(["q"] * 3, TEXTS) == [1.0, 2.5, 1.0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return [1.0 / len(r.strip('b')[1:]) for r in responses]", "raised ZeroDivisionError: float division by zero"),
        ("raise ValueError('line\\n two \\x1b[1m')", "raised ValueError: line two [1m, for response 0 ('a')"),
        ("raise SystemExit", "raised SystemExit, for response 0 ('a')"),
        ("return [1.0 if len(r) < 99 else 1 / 0 for r in responses]", "for response 2 ('ccc ccc"),
        ("assert len(responses) < 3; return [1.0]", "for 3 responses together, and for none alone; the first is"),
        ("return [1.0, 2.0]", "returned 2 numbers for 3 responses. Without one: response 2 ('ccc ccc"),
        ("return [1.0] * 4", "returned 4 numbers for 3 responses."),
        ("return 1.0", "must return a list of numbers"),
        ("return 'abc'", "must return a list of numbers"),
        ("return None", "must return a list of numbers"),
        ("return [1.0, math.nan, 1.0]", "returned nan, not a finite number, for response 1 ('bb [31m')"),
        ("return [1.0, 1.0, -math.inf]", "returned -inf, not a finite number, for response 2"),
        ("return [1e300, 1.0, 1.0]", "returned 1e+300, not a finite number, for response 0"),
        ("return ['1', 1.0, 1.0]", "returned 1, not a finite number, for response 0"),
        ("return [[1.0], 1.0, 1.0]", "returned a list, not a finite number, for response 0"),
    ],
)
def test_what_goes_wrong_names_the_function_and_the_text(written: Any, body: str, words: str) -> None:
    function = written(body)
    with pytest.raises(StageError) as caught:
        function(["q"] * 3, TEXTS)
    message = str(caught.value)
    assert message.startswith("`reward_fn: toy_rewards:score` ") and words in message
    assert message.isprintable() and len(message) < 300


def test_modules_that_cannot_be_had(written: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="importing `toy_rewards` raised NameError: name 'nothing'"):
        written("pass\nnothing")
    with pytest.raises(StageError, match="importing `absent` raised ModuleNotFoundError"):
        RewardFunction("absent:score", str(tmp_path))
    with pytest.raises(StageError, match=r"`math` is already imported from .*; rename"):
        written("pass", name="math")
    with pytest.raises(StageError, match="has no function `pi`"):
        RewardFunction("math:pi", None)


def test_what_lies_beside_the_function_can_be_imported_and_shadows_nothing(written: Any, tmp_path: Path) -> None:
    (tmp_path / "toy_helper.py").write_text("def one():\n    return 1.0\n")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('shadowed')\n")
    function = written("import toy_helper; return [toy_helper.one() for _ in responses]")
    assert function(["q"], ["r"]) == [1.0] and math.isfinite(len(sys.path))
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.__file__ != str(tmp_path / "colorsys.py")


def test_what_may_pass_is_asked_again_and_told(tmp_path: Path, written: Any) -> None:
    written("pass", name="toy_service")
    calls, notices, waits = list[int](), list[str](), list[float]()

    def service(*, questions: list[str], responses: list[str]) -> list[float]:
        calls.append(len(responses))
        if len(calls) < 3:
            raise TimeoutError("read timed out")
        return [1.0] * len(responses)

    function = RewardFunction("toy_service:score", str(tmp_path), notices.append, waits.append)
    function._function = service
    assert function(["q"] * 3, TEXTS) == [1.0] * 3
    assert calls == [3, 3, 3] and waits == [1.0, 5.0]
    assert notices[0] == "`reward_fn: toy_service:score` raised TimeoutError: read timed out; calling again in 1 s"
    function._function = lambda **_: 1 / 0
    with pytest.raises(StageError, match="ZeroDivisionError"):  # a mistake does not pass
        function(["q"], ["r"])
    assert len(waits) == 2


def test_a_service_that_stays_away_ends_the_run_at_last(written: Any) -> None:
    function = written("raise TimeoutError('read timed out')")
    waits: list[float] = []
    function._wait = waits.append
    with pytest.raises(StageError, match=r"raised TimeoutError: read timed out, for response 0 \('a'\)"):
        function(["q"] * 3, TEXTS)
    assert waits == [1.0, 5.0, 25.0]


def test_an_abstention_adds_nothing_and_without_a_reward_model_scores_the_mean(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("return [None, 2.0, 4.0]")
    monkeypatch.setattr(rewards_module, "load_scorer", lambda *_: Judge(1.0, 1.0, math.nan))
    base: Any = SimpleNamespace(device=torch.device("cpu"))
    tokenizer: Any = SimpleNamespace(eos_token_id=EOS)
    reporter: Any = SimpleNamespace(health=print)
    texts, tokens = [ResponseText("q", "a", True)] * 3, [[5, EOS]] * 3
    both = Rewards(recipe_of("reward_fn=toy_rewards:score"), base, tokenizer, reporter)
    parts = both.components(texts, tokens, micro_batch_size=3)
    assert not abstained(parts).any()
    assert str(both.total(parts).tolist()) == "[1.0, 3.0, nan]"  # NaN of a model is an error, and stays one
    alone = Rewards(recipe_of("reward_fn=toy_rewards:score", "length_penalty=1"), base, tokenizer, reporter)
    alone._model = None
    parts = alone.components(texts, tokens, micro_batch_size=3)
    scores = alone.total(parts)
    assert abstained(parts).tolist() == [True, False, False]
    assert fill_abstained(scores, abstained(parts), lambda part: part).tolist() == [1.0, 0.0, 2.0]
    nobody = torch.ones(3, dtype=torch.bool)
    assert fill_abstained(scores, nobody, lambda part: part).isnan().all()
