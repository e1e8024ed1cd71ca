"""The application's own keys: help, palette, themes, screenshots, keymap, the way out."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
from tests.tui.app_kit import Shown, run_app
from tests.tui.screens_kit import isolate
from textual.binding import Binding
from textual.command import CommandPalette
from textual.css.query import NoMatches
from textual.widgets import Static

from stackllama_console.settings import Settings, save_settings
from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.base_app import BaseApp
from stackllama_console.tui.keymap import as_bindings
from stackllama_console.tui.screens.compare import CompareScreen
from stackllama_console.tui.screens.help import HelpScreen
from stackllama_console.tui.screens.launch import LaunchScreen
from stackllama_console.tui.screens.monitor import MonitorScreen
from stackllama_console.tui.screens.runs import RunsScreen
from stackllama_console.tui.screens.samples import SamplesScreen
from stackllama_console.tui.themes import load_themes
from stackllama_console.tui.widgets.chart import Chart
from stackllama_console.tui.widgets.log_view import LogView
from stackllama_engine.contract.run_dir import Home

TO_SCREENS: dict[str, tuple[tuple[str, ...], type, str]] = {
    "runs": ((), RunsScreen, "tuned"),
    "monitor": (("enter",), MonitorScreen, "rollout 40"),
    "launch": (("n",), LaunchScreen, "model"),
    "samples": (("a",), SamplesScreen, "because"),
    "compare": (("space", "space", "c"), CompareScreen, "compare  2 runs"),
}


async def _go(shown: Shown, name: str) -> None:
    keys, kind, text = TO_SCREENS[name]
    await shown.shows("tuned", "aligned")
    for key in keys:
        await shown.press(key)
    await shown.until(lambda: isinstance(shown.front, kind))
    await shown.shows(text)


def _named(bindings: list[Binding]) -> list[Binding]:
    return [binding for binding in bindings if binding.id]


def test_application_without_a_way_to_a_screen_cannot_be_made() -> None:
    with pytest.raises(TypeError, match=r"abstract.*open_chat"):
        BaseApp()  # pyright: ignore[reportAbstractUsage]


@pytest.mark.parametrize("name", TO_SCREENS)
def test_help_lists_every_key_that_works_here_with_its_id(stocked: Home, name: str) -> None:
    kind = TO_SCREENS[name][1]
    wanted = _named([*as_bindings(vars(kind)["BINDINGS"]), *as_bindings(ConsoleApp.BINDINGS)])
    if name == "monitor":
        wanted += _named([*as_bindings(Chart.BINDINGS), *as_bindings(LogView.BINDINGS)])

    async def script(shown: Shown) -> None:
        await _go(shown, name)
        refusing = shown.front.refusing_keys
        await shown.press("question_mark")
        await shown.until(lambda: isinstance(shown.front, HelpScreen))
        lines = str(shown.front.query(Static).first().render()).splitlines()
        for binding in wanted:
            if binding.id in refusing:
                assert all(line.split()[-1:] != [binding.id] for line in lines)
                continue
            row = next((line for line in lines if line.split()[-1:] == [binding.id]), None)
            assert row is not None and binding.description in row, binding
            assert row.split()[0] not in (binding.description, binding.id), f"{binding.id} shows no key"
            keys = row.split(binding.description)[0].split()
            assert len(keys) == len(set(keys)), f"{binding.id} shows a key twice"
        await shown.press("question_mark")
        await shown.until(lambda: isinstance(shown.front, kind))

    run_app(stocked, script)


@pytest.mark.slow
def test_help_scrolls_and_q_only_closes_it(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.press("question_mark")
        await shown.shows("runs.launch")
        assert "app.quit_always" not in shown.text
        await shown.press(*["j"] * 40)
        await shown.shows("app.quit_always", "q quits only the console", "keymap.yaml")
        await shown.press("g")
        await shown.shows("runs.launch")
        await shown.press("G")
        await shown.shows("app.quit_always")
        await shown.press(*["k"] * 40)
        await shown.shows("runs.launch")
        await shown.press("q")
        await shown.reaches("RunsScreen")

    run_app(stocked, script)


@pytest.mark.parametrize("name", ["runs", "monitor", "samples"])
def test_q_leaves_from_anywhere_with_0(stocked: Home, name: str) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, name)
        await shown.press("q")
        await shown.until(lambda: not shown.app.is_running or shown.app._exit)

    assert run_app(stocked, script).return_code == 0


def test_escape_and_ctrl_c_do_not_leave(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.press("escape", "escape", "ctrl+c")
        await shown.notified("Press q to quit; runs continue")
        assert shown.name == "RunsScreen" and not shown.app._exit

    run_app(stocked, script)


def test_a_run_or_directory_named_on_the_command_line_is_opened(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await shown.reaches("MonitorScreen")
        await shown.shows("rollout 40")
        await shown.press("escape")
        await shown.shows("tuned")

    run_app(stocked, script, target="aligned")


# the palette


def test_the_palette_has_every_action_and_theme_and_does_it(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        commands = {command.title: command.help for command in shown.app.get_system_commands(shown.front)}
        own = _named(as_bindings(RunsScreen.BINDINGS))
        left_out = [binding for binding in own if binding.id in shown.front.refusing_keys]
        assert {binding.id for binding in left_out} == {
            "runs.stop",
            "runs.save",
            "runs.resume",
            "runs.fold",
            "runs.fork",
        }
        for binding in own:
            assert ((binding.id or "") in commands.get(binding.description, "")) == (binding not in left_out)
        assert {f"theme: {theme.name}" for theme in load_themes()[0]} <= commands.keys()
        await shown.press("colon")
        await shown.until(lambda: isinstance(shown.front, CommandPalette))
        assert "🔎" not in shown.text
        await shown.fill("edit a copy")
        await shown.shows("runs.clone")
        await shown.press("enter")
        await shown.until(lambda: isinstance(shown.front, LaunchScreen))
        await shown.shows("cloned from aligned")

    run_app(stocked, script)


def test_help_and_palette_begin_with_the_screens_own_keys_by_their_names(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "monitor")
        commands = list(shown.app.get_system_commands(shown.front))
        assert commands[0].help.startswith("monitor.")
        sections = [command.help.partition(".")[0] for command in commands if "  key: " in command.help]
        own = list(dict.fromkeys(sections))
        assert own[:3] == ["monitor", "charts", "screen"] and own[-1] == "app" and {"chart", "log"} < set(own)
        keys = " ".join(command.help.partition("key:")[2] for command in commands)
        assert " / " in keys and " [ " in keys and "slash" not in keys and "bracket" not in keys
        await shown.press("colon")
        await shown.until(lambda: isinstance(shown.front, CommandPalette))
        await shown.shows(commands[0].title, commands[0].help)
        await shown.press("escape")
        await shown.press("question_mark")
        await shown.until(lambda: isinstance(shown.front, HelpScreen))
        text = str(shown.front.query(Static).first().render())
        assert text.startswith("monitor\n") and "slash" not in text

    run_app(stocked, script)


# notices


def test_the_same_notice_again_is_one_notice_and_escape_dismisses_it(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "monitor")
        await shown.press("ctrl+c", "ctrl+c", "ctrl+c")
        await shown.notified("Press q to quit")
        assert len(shown.said) == 1
        shown.app.notify("another", markup=False)
        await shown.until(lambda: len(shown.said) == 2)
        await shown.press("escape")
        assert shown.said == [] and shown.name == "MonitorScreen"
        await shown.press("escape")
        await shown.reaches("RunsScreen")

    run_app(stocked, script)


def test_at_most_three_notices_are_shown_the_newest(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        for number in range(5):
            shown.app.notify(f"notice {number}", markup=False)
        await shown.until(lambda: shown.said == ["notice 2", "notice 3", "notice 4"])
        shown.app.notify("notice 2", markup=False)
        await shown.until(lambda: shown.said == ["notice 3", "notice 4", "notice 2"])

    run_app(stocked, script)


def test_the_palette_turns_the_announcing_of_ends_off_and_on_again(stocked: Home, tmp_path: Path) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        for before, after in (("off", False), ("on", True)):
            (switch,) = [
                command
                for command in shown.app.get_system_commands(shown.front)
                if command.title == f"announce ends of runs: turn {before}"
            ]
            switch.callback()
            await shown.until(lambda after=after: _settings(tmp_path).get("announce", True) is after)

    run_app(stocked, script)


# themes


def _settings(tmp_path: Path) -> dict[str, object]:
    file = tmp_path / "state" / "stackllama" / "settings.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def test_themes_go_round_and_the_last_one_is_remembered(stocked: Home, tmp_path: Path) -> None:
    names = [theme.name for theme in load_themes()[0]]
    assert len(names) >= 5

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        assert shown.app.theme == "dusk"
        seen: list[str] = []
        for _ in names:
            await shown.press("T")
            seen.append(shown.app.theme)
            await shown.until(lambda: _settings(tmp_path).get("theme", "dusk") == shown.app.theme)
            shown.assert_clean()
        assert sorted(seen) == sorted(names) and seen[-1] == "dusk"
        await shown.press("T")

    last = run_app(stocked, script).theme
    assert last != "dusk"

    async def again(shown: Shown) -> None:
        assert shown.app.theme == last

    run_app(stocked, again)


def test_a_disk_that_stalls_holds_up_no_key_and_gets_the_last_choice(
    stocked: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thawed = threading.Event()
    written: list[str] = []

    def stalling(settings: Settings) -> str | None:
        assert thawed.wait(60)
        written.append(settings.theme)
        return save_settings(settings)

    monkeypatch.setattr("stackllama_console.tui.base_app.save_settings", stalling)

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        for _ in range(3):
            before = shown.app.theme
            await shown.press("T")
            assert shown.app.theme != before
        assert not written
        thawed.set()
        await shown.until(lambda: len(written) == 2)
        await shown.press("T")

    last = run_app(stocked, script).theme
    assert _settings(tmp_path)["theme"] == last and len(written) == 3


def _colours(shown: Shown) -> set[object]:
    """Return every pair of colours on the screen."""
    segments = (segment for strip in shown.front._compositor.render_strips() for segment in strip)
    return {(segment.style.color, segment.style.bgcolor) for segment in segments}


@pytest.mark.parametrize("name", TO_SCREENS)
def test_another_theme_leaves_no_colour_of_the_one_before(stocked: Home, name: str) -> None:
    fresh: set[object] = set()

    async def begin(shown: Shown) -> None:
        await _go(shown, name)
        fresh.update(_colours(shown))

    async def choose(shown: Shown) -> None:
        await _go(shown, name)
        assert not _colours(shown) <= fresh
        shown.app.choose_theme("paper")
        await shown.until(lambda: _colours(shown) <= fresh)

    save_settings(Settings(theme="paper"))
    run_app(stocked, begin)
    save_settings(Settings(theme="dusk"))
    run_app(stocked, choose)


def _theme(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_bad_theme_file_is_one_notice(stocked: Home, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "stackllama" / "themes"
    _theme(folder / "bad.yaml", "name: bad\nprimary: '[bold]nonsense'\n")

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        assert len(shown.said) == 1 and "bad.yaml" in shown.said[0]
        assert "bad" not in shown.app.available_themes and shown.app.theme == "dusk"

    run_app(stocked, script)


def test_own_theme_is_applied(stocked: Home, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "themes" / "dusk.yaml"
    text = source.read_text().replace("name: dusk", "name: mine")
    _theme(tmp_path / "config" / "stackllama" / "themes" / "mine.yaml", text)

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        shown.app.choose_theme("mine")
        await shown.pilot.pause()

    run_app(stocked, script)
    assert _settings(tmp_path)["theme"] == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("theme", [theme.name for theme in load_themes()[0]])
def test_every_theme_applies_to_every_screen(stocked: Home, theme: str) -> None:
    async def script(shown: Shown) -> None:
        shown.app.choose_theme(theme)
        for name in ("monitor", "launch"):
            await _go(shown, name)
            shown.assert_clean()
            await shown.press("escape")
        await shown.press("question_mark")
        await shown.until(lambda: isinstance(shown.front, HelpScreen))
        shown.assert_clean()

    run_app(stocked, script, size=(130, 40))


# screenshots


def test_the_screen_is_saved_as_svg(stocked: Home, tmp_path: Path) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.press("P")
        await shown.notified(".svg")

    run_app(stocked, script)
    (file,) = (tmp_path / "state" / "stackllama" / "screenshots").glob("*.svg")
    assert "aligned" in file.read_text()


def test_failed_screenshot_is_one_notice(stocked: Home, tmp_path: Path) -> None:
    state = tmp_path / "state" / "stackllama"
    state.mkdir(parents=True)
    (state / "screenshots").write_text("a file where a folder should be")

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.press("P")
        await shown.notified("screenshot not saved")

    run_app(stocked, script)


# keys of a person's own


def _keymap(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config" / "stackllama" / "keymap.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_keymap_changes_keys_and_help_shows_them(stocked: Home, tmp_path: Path) -> None:
    _keymap(tmp_path, 'runs.launch: "m"\napp.help: "f1,?"\n')

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        assert shown.said == []
        await shown.press("n")
        assert shown.name == "RunsScreen"
        await shown.press("f1")
        await shown.until(lambda: isinstance(shown.front, HelpScreen))
        row = next(line for line in shown.lines if "runs.launch" in line)
        assert row.split()[1:3] == ["m", "launch"]
        await shown.press("escape", "m")
        await shown.until(lambda: isinstance(shown.front, LaunchScreen))

    run_app(stocked, script)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("runs.launch: q\n", ("`q`", "`runs.launch`", "`app.quit`")),
        ("runs.lunch: m\n", ("unknown binding `runs.lunch`", "did you mean `runs.launch`")),
        ("runs.launch: [", ("cannot read",)),
        ("'[bold]x[/]': m\n", ("unknown binding `[bold]x[/]`",)),
    ],
)
def test_wrong_keymap_entries_are_notices(stocked: Home, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    _keymap(tmp_path, text)

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.notified(*parts)

    run_app(stocked, script)


# what is not there, not readable, not writable


def test_a_damaged_settings_file_is_one_notice(stocked: Home, tmp_path: Path) -> None:
    file = tmp_path / "state" / "stackllama" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        assert len(shown.said) == 1 and "starting with the defaults" in shown.said[0]

    run_app(stocked, script)


def test_unwritable_state_directory_is_a_notice_and_no_crash(stocked: Home, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")

    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        await shown.press("T")
        await shown.notified("cannot be written")
        await shown.press("enter")
        await shown.shows("rollout 40")
        await shown.press("d", "Y")
        await shown.notified("copied.txt")

    run_app(stocked, script)


def test_home_that_is_a_file_lists_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = isolate(tmp_path, monkeypatch)
    home.path.mkdir()
    home.runs_dir.write_text("no folder")

    async def script(shown: Shown) -> None:
        await shown.shows("runs  0")
        shown.assert_clean()

    run_app(home, script)


def test_notices_are_never_read_as_markup(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "runs")
        shown.front.say("x [/] [@click=app.quit]quit[/] \x1b[2J")
        shown.front.say("[/INST]", error=True)
        await shown.pilot.pause()
        raised = list(shown.app._notifications)
        assert all(not notice.markup for notice in raised) and len(raised) == 2
        assert raised[0].message == "x [/] [@click=app.quit]quit[/]"

    run_app(stocked, script)


def test_work_that_outlives_its_screens_widgets_is_no_crash(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        await _go(shown, "monitor")
        screen, widgets = shown.front, len(shown.front.query("*"))
        gone: list[bool] = []

        async def work() -> None:
            while len(screen.query("*")) == widgets:
                await asyncio.sleep(0)
            gone.append(True)
            screen.query_one("#nowhere")

        screen.begin(work(), group="test")
        await shown.press("escape")
        await shown.until(lambda: shown.front is not screen)
        assert gone

    run_app(stocked, script)


def test_query_for_a_missing_widget_is_a_crash(stocked: Home) -> None:
    async def script(shown: Shown) -> None:
        screen = shown.front

        async def work() -> None:
            screen.query_one("#nowhere")

        with pytest.raises(NoMatches):
            await screen._while_here(work())

    run_app(stocked, script)
