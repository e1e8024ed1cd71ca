"""Keys of a person's own: what is wrong is said in sentences, what clashes is named, what is right works."""

from pathlib import Path

import pytest
from textual.binding import Binding

from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.keymap import Scope, clashes, read_keymap
from stackllama_console.tui.screens.scopes import all_scopes

IDS = ["app.help", "app.quit", "runs.stop"]


def _read(tmp_path: Path, text: str) -> tuple[dict[str, str], list[str]]:
    file = tmp_path / "keymap.yaml"
    file.write_text(text)
    return read_keymap(file, IDS)


def test_no_file_is_no_change(tmp_path: Path) -> None:
    assert read_keymap(tmp_path / "none.yaml", IDS) == ({}, [])


def test_keys_are_given_by_binding_id(tmp_path: Path) -> None:
    keymap, notices = _read(tmp_path, 'runs.stop: x\napp.help: "f1, ?"\napp.quit: 9\n')
    assert notices == []
    assert keymap == {"runs.stop": "x", "app.help": "f1,question_mark", "app.quit": "9"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs.stpo: x", "did you mean `runs.stop`"),
        ("runs.stop: [x]", "expected a key"),
        ("runs.stop: ''", "expected a key"),
        ("runs.stop: true", "expected a key"),
        ("- x", "expected a mapping"),
        ("runs.stop: [", "cannot read"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    keymap, notices = _read(tmp_path, text)
    assert keymap == {}
    assert len(notices) == 1 and said in notices[0] and "\n" not in notices[0]


def test_a_clash_is_named_where_both_keys_can_be_reached() -> None:
    stop, help_, log = (
        Binding(key, "a", id=name) for key, name in (("s", "runs.stop"), ("f1", "app.help"), ("y", "log.x"))
    )
    scope = Scope("runs", [stop, help_], {"Log": [log]})
    assert clashes([scope], {}) == []
    assert clashes([scope], {"app.help": "s"}) == ["`s` is bound to `runs.stop` and `app.help` (runs, Log)"]
    assert clashes([scope], {"log.x": "f1"}) == ["`f1` is bound to `app.help` and `log.x` (runs, Log)"]
    assert clashes([scope], {"runs.stop": "f1", "app.help": "s"}) == []  # exchanged


def test_our_own_keys_do_not_clash() -> None:
    scopes = all_scopes(ConsoleApp.BINDINGS)
    every = {name: binding.key for scope in scopes for binding, name in _named(scope)}
    # escape goes from the innermost thing that is open to the screen: each of them gives it on when nothing is open
    assert [clash for clash in clashes(scopes, every) if not clash.startswith("`escape` is bound to")] == []


def test_every_binding_has_an_id_a_description_and_a_plain_key() -> None:
    for scope in all_scopes(ConsoleApp.BINDINGS):
        for binding, name in _named(scope):
            assert name and binding.description, (scope.title, binding)
            keys = [key.strip() for key in binding.key.split(",")]
            assert any("ctrl" not in key for key in keys) or name in ("app.quit_always", "app.interrupt"), name


def _named(scope: Scope) -> list[tuple[Binding, str]]:
    widgets = [binding for bindings in scope.widgets.values() for binding in bindings]
    return [(binding, binding.id or "") for binding in (*scope.bindings, *widgets)]
