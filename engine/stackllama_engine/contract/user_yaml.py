"""YAML that people write: within bounds that every honest file keeps, so that a hostile one costs a sentence.

Seven lines of aliases of aliases stand for a billion values, a number of a million digits takes Python minutes to
print, and a tag such as ``!!bool maybe`` ends in an exception of any kind: here each is a :class:`YamlError`.
"""
# PyYAML's classes are typed in parts.
# pyright: reportUnknownMemberType=false

from collections.abc import Hashable
from typing import Any, cast

import yaml
from yaml.composer import ComposerError

_MOST_NODES = 10_000  # keys and values; one that an alias stands for counts each time
_MOST_DEPTH = 40
_MOST_NUMBER = 100  # characters
_ANYTHING = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What PyYAML raises: ``!!bool maybe`` a KeyError, ``!!int ""`` an IndexError, 2001-02-30 a ValueError."""


class YamlError(ValueError):
    """Not YAML that is read here; one line for a person."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that counts what it makes."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = isinstance(self.peek_event(), yaml.AliasEvent)
        mark = cast("Any", self.peek_event()).start_mark
        before = self._nodes
        self._nodes += 1
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ComposerError(None, None, f"nested more than {_MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and alias:
            if node not in self._sizes:
                raise ComposerError(None, None, "an alias of what it is a part of", mark)
            self._nodes = before + self._sizes[node]
        elif node is not None:
            self._sizes[node] = self._nodes - before
        if self._nodes > _MOST_NODES:
            raise ComposerError(
                None, None, f"more than {_MOST_NODES:,} values (what an alias stands for counts each time)", mark
            )
        return node

    def bounded_int(self, node: yaml.ScalarNode) -> int:
        """An integer of no more digits than anybody writes."""
        _check_number(node)
        return self.construct_yaml_int(node)

    def bounded_float(self, node: yaml.ScalarNode) -> float:
        """A float, likewise."""
        _check_number(node)
        return self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.bounded_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.bounded_float)


class _StrictLoader(_Loader):
    """One that refuses a key given twice instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for key_node, _ in pairs:
            key = cast("Any", self.construct_object(key_node, deep=True))
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, *, strict: bool = False) -> Any:
    """The value that a text holds.

    Args:
        text: YAML, one document.
        strict: refuse a key that is given twice.

    Raises:
        YamlError: no YAML, or beyond the bounds.
    """
    loader = _StrictLoader if strict else _Loader
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - both are SafeLoaders
    except _ANYTHING as error:
        said = " ".join(str(error).split())
        raise YamlError(said if isinstance(error, yaml.YAMLError) else f"a value is not of its type ({said})") from None


def _check_number(node: yaml.ScalarNode) -> None:
    if len(node.value) > _MOST_NUMBER:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number of {len(node.value):,} characters; {_MOST_NUMBER} are the most", node.start_mark
        )
