"""YAML loader with limits that every honest file keeps, so that a malicious one is a one-line error.

Seven lines of aliases of aliases stand for a billion values, a number of a million digits takes Python minutes to
print, and a tag such as ``!!bool maybe`` raises any kind of exception: here each is a :class:`YamlError`.
"""
# PyYAML's classes are typed in parts.
# pyright: reportUnknownMemberType=false

from collections.abc import Hashable
from typing import Any, cast

import yaml
from yaml.composer import ComposerError

_MOST_NODES = 10_000  # keys and values; an aliased one counts each time
_MOST_DEPTH = 40
_MOST_NUMBER = 100  # characters
_ANYTHING = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""Exceptions of PyYAML: KeyError for ``!!bool maybe``, IndexError for ``!!int ""``, ValueError for 2001-02-30."""


class YamlError(ValueError):
    """Text that is not valid YAML, or beyond the limits; the message is one line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that limits depth and number of nodes."""

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
            raise ComposerError(None, None, f"nested more than {_MOST_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and alias:
            if node not in self._sizes:
                raise ComposerError(None, None, "an alias of a value that contains it", mark)
            self._nodes = before + self._sizes[node]
        elif node is not None:
            self._sizes[node] = self._nodes - before
        if self._nodes > _MOST_NODES:
            raise ComposerError(
                None, None, f"more than {_MOST_NODES:,} values (an aliased value counts each time)", mark
            )
        return node

    def bounded_int(self, node: yaml.ScalarNode) -> int:
        """Construct an integer of a limited number of digits."""
        _check_number(node)
        return self.construct_yaml_int(node)

    def bounded_float(self, node: yaml.ScalarNode) -> float:
        """Construct a float of a limited number of digits."""
        _check_number(node)
        return self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.bounded_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.bounded_float)


class _StrictLoader(_Loader):
    """Loader that refuses a duplicate key instead of keeping the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for key_node, _ in pairs:
            key = cast("Any", self.construct_object(key_node, deep=True))
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` is given twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, *, strict: bool = False) -> Any:
    """Load the value of a YAML text.

    Args:
        text: one YAML document.
        strict: refuse duplicate keys.

    Raises:
        YamlError: not YAML, or beyond the limits.
    """
    loader = _StrictLoader if strict else _Loader
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - both are SafeLoaders
    except _ANYTHING as error:
        message = " ".join(str(error).split())
        known = isinstance(error, yaml.YAMLError)
        raise YamlError(message if known else f"a value does not have the type of its tag ({message})") from None


def _check_number(node: yaml.ScalarNode) -> None:
    if len(node.value) > _MOST_NUMBER:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number of {len(node.value):,} characters; the limit is {_MOST_NUMBER}", node.start_mark
        )
