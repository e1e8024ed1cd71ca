"""Keys: every binding has an id, and a person may give it other keys in ``keymap.yaml``::

    runs.stop: x
    app.help: "question_mark,f1"

Wrong entries are reported once, one sentence each, and skipped: unknown ids, keys that are not text, and two actions
on one key where both can be reached.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from msgspec import Struct
from textual.binding import Binding, BindingType

from stackllama_engine.contract.user_files import read_text
from stackllama_engine.contract.user_yaml import load_yaml

from ..sanitise import one_line

_MOST_BYTES = 64 * 1024


class Scope(Struct, frozen=True):
    """Bindings that are reached together: the application's, a screen's, and those of each widget in it."""

    title: str
    bindings: list[Binding]
    """The application's and the screen's own."""
    widgets: dict[str, list[Binding]] = {}
    """Reached while that widget has the focus."""

    @property
    def ids(self) -> set[str]:
        """The ids of all its bindings."""
        own = (binding for bindings in self.widgets.values() for binding in bindings)
        return {binding.id for binding in (*self.bindings, *own) if binding.id}


def as_bindings(bindings: Iterable[BindingType]) -> list[Binding]:
    """Return a class's ``BINDINGS`` as :class:`Binding`; Textual also allows tuples of three."""
    return [binding if isinstance(binding, Binding) else _binding(binding) for binding in bindings]


def _binding(short: tuple[str, ...]) -> Binding:
    key, action, *description = short
    return Binding(key, action, description[0] if description else "")


def read_keymap(file: Path, known_ids: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return binding id → keys (as Textual writes them, several with commas), and a sentence per wrong entry."""
    try:
        raw: Any = load_yaml(read_text(file, _MOST_BYTES))
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"cannot read {file}: {one_line(str(error))}"]
    if raw is None:
        return {}, []
    if not isinstance(raw, dict):
        return {}, [f"{file}: expected a mapping of `binding id: keys` lines"]
    ids = list(known_ids)
    keymap: dict[str, str] = {}
    notices: list[str] = []
    for name, keys in cast("dict[Any, Any]", raw).items():
        if name not in ids:
            near = difflib.get_close_matches(str(name), ids, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "; help (?) lists them all"
            notices.append(one_line(f"{file}: unknown binding `{name}`{hint}"))
        elif not isinstance(keys, str | int) or isinstance(keys, bool) or not str(keys).strip():
            notices.append(one_line(f"{file}: `{name}: {keys}`: expected a key, e.g. `{name}: x`"))
        else:
            keymap[str(name)] = ",".join(_key_name(part) for part in str(keys).split(","))
    return keymap, notices


def clashes(scopes: Iterable[Scope], keymap: Mapping[str, str]) -> list[str]:
    """Return one sentence for each key that ``keymap`` gives to two actions that can be reached at once."""
    sentences: dict[str, None] = {}
    for scope in scopes:
        for widget, own in (scope.widgets or {"": []}).items():
            users: dict[str, list[Binding]] = defaultdict(list)
            for binding in (*scope.bindings, *own):
                keys = keymap.get(binding.id or "", binding.key)
                for key in keys.split(","):
                    users[key.strip()].append(binding)
            for key, bindings in users.items():
                ids = list(dict.fromkeys(binding.id or binding.action for binding in bindings))
                if len(ids) > 1 and any(name in keymap for name in ids):
                    where = f"{scope.title}, {widget}" if widget else scope.title
                    sentences[f"`{key}` is bound to {' and '.join(f'`{name}`' for name in ids)} ({where})"] = None
    return list(sentences)


def _key_name(text: str) -> str:
    """Return Textual's name of a single character (`?` is `question_mark`), any other key as it is."""
    from textual.keys import _character_to_key  # pyright: ignore[reportPrivateUsage]

    key = one_line(text)
    return _character_to_key(key) if len(key) == 1 else key
