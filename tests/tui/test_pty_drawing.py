"""Output to a real terminal: few colours or none, ASCII alone, other sizes; nothing while nothing happens."""

import re
from collections.abc import Callable

import pytest
from tests.tui.terminal import ALTERNATE, Terminal

pytestmark = pytest.mark.slow  # each starts the real command in a terminal: a second or more

Open = Callable[..., Terminal]

SGR = re.compile(r"\x1b\[([0-9;]*)m")
BASIC = {
    str(code)
    for code in (*range(10), *range(21, 30), *range(30, 38), 39, *range(40, 48), 49, *range(90, 98), *range(100, 108))
}
COLOURS = {str(code) for code in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108))}

SCREENS: dict[str, tuple[str, tuple[str, ...]]] = {
    "runs": ("", ("tuned", "broken")),
    "monitor": ("G\r", ("rollout 40", "reward")),
    "launch": ("n", ("sft", "model")),
    "help": ("?", ("runs.launch",)),
    "confirm": ("D", ("Delete aligned",)),
    "filter": ("/tuned", ("filter: tuned",)),
    "ask": ("o", ("trainer_state.json",)),
    "samples": ("Ga", ("because",)),
    "compare": (" j c", ("compare  2 runs", "The runs share no metrics")),
}
"""Keys from the list of runs, and what then stands only there. `aligned` is the first row of all by name."""
NO_UTF8 = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def _sgr(console: Terminal) -> set[str]:
    return {code for match in SGR.finditer(console.output) for code in match[1].split(";") if code}


def _leave(console: Terminal) -> None:
    console.send("q")
    assert console.end() == 0
    console.assert_left_clean()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["dusk", "ansi"])
def test_no_color_sends_no_colour_and_the_cursor_is_seen(terminal: Open, theme: str) -> None:
    console = terminal(environment={"NO_COLOR": "1"})
    console.wait_for("tuned", "✗ failed")
    if theme != "dusk":
        console.send(":")
        console.wait_for("Search")
        console.send(f"theme: {theme}")
        console.wait_for("apply and remember")
        console.send("\r")
        console.settle()
    console.send("\r")
    console.wait_for("reward", "INFO rollout 40")
    console.send("\x1b")
    console.settle()
    codes = _sgr(console)
    assert not codes & COLOURS and {"1", "7"} <= codes
    rows = console.text().splitlines()
    cursor = next(index for index, row in enumerate(rows) if "aligned" in row)
    assert any(cell.reverse for cell in console.screen.buffer[cursor].values())
    _leave(console)


def test_sixteen_colour_terminal_gets_sixteen_colours(terminal: Open) -> None:
    console = terminal("open", "aligned", environment={"TERM": "xterm"})
    console.wait_for("rollout 40")
    _leave(console)
    codes = _sgr(console)
    assert codes & COLOURS and codes <= BASIC


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "wanted"), [({}, "38;5"), ({"COLORTERM": "truecolor"}, "38;2")])
def test_as_many_colours_as_the_terminal_has(terminal: Open, variables: dict[str, str], wanted: str) -> None:
    console = terminal(environment=variables)
    console.wait_for("tuned")
    _leave(console)
    sent = {match[1] for match in SGR.finditer(console.output)}
    assert any(wanted in codes for codes in sent)
    assert ("38;2;" in "".join(sent)) == bool(variables)


@pytest.mark.parametrize("environment", [{}, pytest.param(NO_UTF8, marks=pytest.mark.slow)], ids=["option", "locale"])
def test_ascii_draws_with_ascii_alone(terminal: Open, environment: dict[str, str]) -> None:
    console = terminal(*(() if environment else ("--ascii",)), environment=environment, size=(130, 40))
    console.wait_for("aligned", "broken")
    for keys, texts in (SCREENS[name] for name in ("monitor", "help", "launch")):
        console.send("".join(key for key in keys if key != "G"))
        console.wait_for(*texts)
        console.settle(0.3)
        assert console.data.isascii()
        console.send("\x1b")
        console.wait_for("broken", "alive")
        console.settle(0.3)
    _leave(console)
    assert console.data.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_survives_20_by_5_and_comes_back_as_it_was(terminal: Open, name: str) -> None:
    keys, texts = SCREENS[name]
    console = terminal()
    console.wait_for("aligned", "tuned")
    _open_screen(console, keys, texts)
    before = console.text()
    for size in ((20, 5), (1, 1), (20, 5), (300, 80)):
        console.resize(*size)
        console.settle(0.4)
        assert console.process.poll() is None
    console.resize(80, 24)
    console.wait_for(*texts)
    console.settle(0.6)
    assert console.text() == before
    console.send("\x1b\x1b" if name == "filter" else "")
    console.resize(20, 5)
    console.settle(0.4)
    console.send("\x03")
    console.settle(0.4)
    assert console.process.poll() is None
    console.signal(15)  # type: ignore[arg-type]
    assert console.end() == 143
    console.assert_left_clean()


def _open_screen(console: Terminal, keys: str, texts: tuple[str, ...]) -> None:
    for key in keys.replace("G", ""):
        console.send(key)
        console.settle(0.3)
    console.wait_for(*texts)
    console.settle()


@pytest.mark.slow
def test_nothing_is_sent_while_nothing_happens(terminal: Open) -> None:
    consoles = {name: terminal(size=(120, 40)) for name in ("runs", "monitor", "launch", "samples", "help")}
    for name, console in consoles.items():
        console.wait_for("aligned", "tuned")
        _open_screen(console, *SCREENS[name])
    for console in consoles.values():
        console.settle(1.5)
    # meanwhile what the others send waits to be read
    assert consoles["runs"].count_bytes(4) == 0
    before = consoles["launch"].text()
    sent = {name: console.pump(0.0) for name, console in consoles.items()}
    if consoles["launch"].text() != before:  # the machine's free memory, which others move
        sent["launch"] = 0
    assert sent == dict.fromkeys(consoles, 0)
    assert all(console.modes()[ALTERNATE] for console in consoles.values())


def test_a_finished_run_costs_no_byte(terminal: Open) -> None:
    console = terminal("open", "aligned")
    console.wait_for("rollout 40")
    console.settle(1.2)
    assert console.count_bytes(2) == 0
