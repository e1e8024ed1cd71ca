"""A reward function of the user's: how it is called, and what it may do wrong."""

import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackllama_engine.contract.errors import StageError
from stackllama_engine.contract.recipe import RewardFunc
from stackllama_engine.train.ppo.response_text import ResponseText
from stackllama_engine.train.ppo.reward_function import RewardFunction, score_all

TEXTS = [ResponseText("q", text, True, columns={"answer": 7}) for text in ("a", "bb\x1b[31m", "ccc " * 50)]
CHAT = [ResponseText("hi", "hello", True, [{"role": "user", "content": "hi"}], {"answer": 7})]
OURS = "def score(*, questions, responses):"


def named(reference: str, directory: Path | None, name: str = "score") -> RewardFunc:
    return RewardFunc(reference=reference, directory=str(directory) if directory else None, weight=1.0, name=name)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    """Write a module and load a function of it; forget both afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def write(body: str, head: str = OURS, module: str = "toy_rewards", **more: Any) -> RewardFunction:
        (tmp_path / f"{module}.py").write_text(f"import asyncio, math, re, time\n{head}\n    {body}\n")
        quiet: dict[str, Any] = {"notice": lambda _: None, "wait": lambda _: None}
        return RewardFunction(named(f"{module}:score", tmp_path), **quiet | more)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


# how it is called

TRL = {"prompts": ["q"], "completions": ["a"]}
TRL_CHAT = {"prompts": [CHAT[0].messages], "completions": [[{"role": "assistant", "content": "hello"}]]}
OWN_CHAT = {"questions": ["hi"], "prompts": ["hi"], "responses": ["hello"]}
EVERYTHING = OWN_CHAT | TRL_CHAT | {"completion_ids": [[]], "answer": [7], "scale": 2}


@pytest.mark.parametrize(
    ("head", "texts", "given"),
    [
        ("def score(prompts, completions):", TEXTS[:1], TRL),
        ("def score(completions, answer, scale=1):", TEXTS[:1], {"completions": ["a"], "answer": [7], "scale": 2}),
        (
            "def score(completions, question, prompt):",
            TEXTS[:1],
            {"completions": ["a"], "question": ["q"], "prompt": ["q"]},
        ),
        ("async def score(completions, prompts):", CHAT, TRL_CHAT),
        (
            "def score(completions, completion_ids):",
            [TEXTS[0]._replace(ids=(5, 2))],
            {"completions": ["a"], "completion_ids": [[5, 2]]},
        ),
        ("def score(questions, prompts, responses):", CHAT, OWN_CHAT),
        ("def score(responses, **kwargs):", CHAT, EVERYTHING | {"prompts": ["hi"]}),
        ("def score(**kwargs):", CHAT, EVERYTHING),
    ],
)
def test_a_function_gets_what_its_parameters_name(written: Any, head: str, texts: Any, given: dict[str, Any]) -> None:
    body = "all = locals(); all.update(all.pop('kwargs', {})); seen.append(all); return [1.0]"
    function = written(body, f"seen = []\n{head}", options={"scale": 2})
    assert function(texts) == [1.0]
    assert function._function.__globals__["seen"] == [given]


def test_what_there_is_not_is_named(written: Any) -> None:
    with pytest.raises(StageError, match=r"needs `solution`, which is neither a column .* which have `answer`, `k`\."):
        written("return [1.0]", "def score(completions, solution):", options={"k": 1})(TEXTS)
    with pytest.raises(StageError, match="takes neither `completions` nor `responses`"):
        written("return [1.0]", "def score(prompts):", module="other_rewards")(TEXTS)


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
    assert written(body)(TEXTS) == [1.0, 2.5, 1.0]


def test_a_coroutine_of_a_plain_function_is_awaited(written: Any) -> None:
    head = "async def inner(n):\n    return [1.0] * n\ndef score(responses):"
    assert written("return inner(len(responses))", head)(TEXTS) == [1.0] * 3


# what goes wrong

WRONG = [
    ("return [1.0 / len(r.strip('b')[1:]) for r in responses]", "raised ZeroDivisionError: float division by zero"),
    ("raise ValueError('line\\n two \\x1b[1m')", "raised ValueError: line two [1m, for response 0 ('a')"),
    ("raise SystemExit", "raised SystemExit, for response 0 ('a')"),
    ("return [1.0 if len(r) < 99 else 1 / 0 for r in responses]", "for response 2 ('ccc ccc"),
    ("assert len(responses) < 3; return [1.0]", "for 3 responses together, and for none alone; the first is"),
    ("return [1.0, 2.0]", "returned 2 numbers for 3 responses. Without one: response 2 ('ccc ccc"),
    ("return [1.0] * 4", "returned 4 numbers for 3 responses."),
    ("return 1.0", "must return a list of numbers"),
    ("import torch; return torch.tensor([1.0, 2.0]).mean()", "must return a list of numbers"),
    ("import numpy; return numpy.array(1.0)", "must return a list of numbers"),
    ("return {1.0, 2.0, 3.0}", "must return a list of numbers"),
    ("return frozenset([1.0, 2.0, 3.0])", "must return a list of numbers"),
    ("return 'abc'", "must return a list of numbers"),
    ("return None", "must return a list of numbers"),
    ("return [1.0, math.nan, 1.0]", "returned nan, not a finite number, for response 1 ('bb [31m')"),
    ("return [1.0, 1.0, -math.inf]", "returned -inf, not a finite number, for response 2"),
    ("return [1e300, 1.0, 1.0]", "returned 1e+300, not a finite number, for response 0"),
    (
        "raise asyncio.CancelledError",
        "raised RuntimeError: asyncio.CancelledError, which nobody asked for, for response 0 ('a')",
    ),
    ("return ['1', 1.0, 1.0]", "returned '1', not a finite number, for response 0"),
    ("return [[1.0], 1.0, 1.0]", "returned a list, not a finite number, for response 0"),
]


@pytest.mark.parametrize("head", [OURS, f"async {OURS}"])
@pytest.mark.parametrize(("body", "words"), WRONG)
def test_what_goes_wrong_names_the_function_and_the_text(written: Any, head: str, body: str, words: str) -> None:
    with pytest.raises(StageError) as caught:
        written(body, head)(TEXTS)
    message = str(caught.value)
    assert message.startswith("`reward_funcs: toy_rewards:score` ") and words in message
    assert message.isprintable() and len(message) < 300


def test_modules_that_cannot_be_had(written: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="importing `toy_rewards` raised NameError: name 'nothing'"):
        written("pass\nnothing")
    with pytest.raises(StageError, match="importing `absent` raised ModuleNotFoundError"):
        RewardFunction(named("absent:score", tmp_path))
    with pytest.raises(StageError, match=r"`math` is already imported from .*; rename"):
        written("pass", module="math")
    with pytest.raises(StageError, match="has no function `pi`"):
        RewardFunction(named("math:pi", None))


def test_what_lies_beside_the_function_can_be_imported_and_shadows_nothing(written: Any, tmp_path: Path) -> None:
    (tmp_path / "toy_helper.py").write_text("def one():\n    return 1.0\n")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('shadowed')\n")
    function = written("import toy_helper; return [toy_helper.one() for _ in responses]")
    assert function(TEXTS[:1]) == [1.0] and math.isfinite(len(sys.path))
    sys.modules.pop("colorsys", None)
    import colorsys

    assert colorsys.__file__ != str(tmp_path / "colorsys.py")


# failures that may pass


@pytest.mark.parametrize("head", [OURS, f"async {OURS}"])
def test_what_may_pass_is_called_again_and_told(written: Any, head: str) -> None:
    notices, waits = list[str](), list[float]()
    body = "calls.append(responses.pop()); assert len(calls) < 4\n"
    body += "    if len(calls) < 3: raise TimeoutError('read timed out')\n    return [1.0] * 3"
    function = written(body, f"calls = []\n{head}", notice=notices.append, wait=waits.append)
    assert function(TEXTS) == [1.0] * 3
    assert function._function.__globals__["calls"] == [TEXTS[2].text] * 3, "with new lists each time"
    assert waits == [1.0, 5.0]
    assert notices[0] == "`reward_funcs: toy_rewards:score` raised TimeoutError: read timed out; calling again in 1 s"


@pytest.mark.parametrize("head", [OURS, f"async {OURS}"])
def test_a_mistake_is_not_repeated_and_a_service_that_stays_away_ends_the_run(written: Any, head: str) -> None:
    waits = list[float]()
    with pytest.raises(StageError, match="ZeroDivisionError"):
        written("1 / 0", head, wait=waits.append)(TEXTS)
    assert waits == []
    with pytest.raises(StageError, match=r"raised TimeoutError: read timed out, for response 0 \('a'\)"):
        written("raise TimeoutError('read timed out')", head, module="away", wait=waits.append)(TEXTS)
    assert waits == [1.0, 5.0, 25.0]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (OURS, "time.sleep(3600)"),
        (OURS, "re.search('(a*)*b', 'a' * 99)"),
        (OURS, "try:\n        time.sleep(3600)\n    except Exception:\n        return [0.0] * 3"),
        (f"async {OURS}", "await asyncio.sleep(3600)"),
        (f"async {OURS}", "time.sleep(3600)"),
        (
            f"async def one(): time.sleep(3600)\nasync {OURS}",
            "return await asyncio.gather(*(one() for _ in responses))",
        ),
    ],
)
def test_a_call_that_takes_too_long_is_made_again_and_then_named(written: Any, head: str, body: str) -> None:
    notices, handler = list[str](), signal.getsignal(signal.SIGALRM)
    function = written(body, head, timeout=0.01, notice=notices.append)
    with pytest.raises(StageError) as caught:
        function(TEXTS)
    assert "score` took longer than `reward_timeout: 0.01` s, for 3 responses together; the first is response 0" in str(
        caught.value
    )
    assert len(notices) == 3 and "took longer than `reward_timeout: 0.01` s; calling again in 1 s" in notices[0]
    assert signal.getsignal(signal.SIGALRM) == handler


def test_an_async_function_that_blocks_takes_no_other_one_with_it(tmp_path: Path, written: Any) -> None:
    written("time.sleep(3600)", "async def quick(responses):\n    return [2.0] * 3\n" + f"async {OURS}")
    quiet: dict[str, Any] = {"notice": lambda _: None, "wait": lambda _: None, "timeout": 0.01}
    functions = [RewardFunction(named(f"toy_rewards:{name}", tmp_path, name), **quiet) for name in ("quick", "score")]
    with pytest.raises(StageError, match="toy_rewards:score` took longer than"):
        score_all(functions, TEXTS)
    assert score_all(functions[:1], TEXTS) == {"quick": [2.0] * 3}


# several


def test_async_functions_are_awaited_together_and_results_keep_the_recipe_s_order(tmp_path: Path, written: Any) -> None:
    written(
        "met.append('last'); return [3.0 for _ in responses]",
        "met = []\n"
        "async def first(responses):\n"
        "    met.append('first')\n"
        "    while 'second' not in met: await asyncio.sleep(0)\n"
        "    return [1.0 for _ in responses]\n"
        "async def second(responses):\n"
        "    met.append('second')\n"
        "    return [2.0, None, 2.0]\n"
        "def score(responses):",
    )
    functions = [RewardFunction(named(f"toy_rewards:{name}", tmp_path, name)) for name in ("first", "score", "second")]
    scores = score_all(functions, TEXTS)
    assert str(scores) == "{'first': [1.0, 1.0, 1.0], 'score': [3.0, 3.0, 3.0], 'second': [2.0, nan, 2.0]}"
    assert score_all([], TEXTS) == {}
