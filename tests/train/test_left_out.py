"""Faster paths that are left out to measure them."""

import pytest

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.train.left_out import NAMES, VARIABLE, left_out


@pytest.mark.parametrize(
    ("value", "names"),
    [("", []), ("graph", ["graph"]), (" casts, lora ,", ["casts", "lora"]), (",".join(NAMES), [*NAMES])],
)
def test_the_named_paths_are_left_out(monkeypatch: pytest.MonkeyPatch, value: str, names: list[str]) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert [name for name in NAMES if left_out(name)] == names


def test_a_name_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "graph,grahp")
    with pytest.raises(UsageError, match="`grahp` is none of casts, lora, graph, head, pack, varlen"):
        left_out("graph")
