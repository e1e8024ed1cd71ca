"""What the launch screen asks for: a model, a run, a name, a file, or whether it is sure."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.run_dir import Home, check_run_id
from stackllama_engine.contract.stages import Stage

from ...readers.choices import RUN_KEYS, Choice, run_choices, typed_models
from ...readers.draft import ADAPTER, Source, read_file, write_file
from ...sanitise import one_line
from ..widgets.recipe_form import RecipeForm
from .confirm import AskScreen, ConfirmScreen
from .pick import PickScreen

if TYPE_CHECKING:
    from .launch import LaunchScreen


class LaunchAsks:
    """The questions of one launch screen."""

    def __init__(self, screen: "LaunchScreen") -> None:
        self.screen = screen
        self._picker: PickScreen | None = None

    def model(self) -> None:
        """Which model; of a merge, which adapter."""
        screen = self.screen
        if screen.draft.stage is Stage.MERGE:
            self._run(ADAPTER)
            return
        home = screen.home
        self._picker = PickScreen(
            "model",
            screen.models,
            screen.draft.model,
            typed=lambda text: typed_models(home, text),
            hint="words to filter, a hub id, or a path",
        )
        self._show(self._picker, screen.draft.model_key)

    def more_models(self) -> None:
        """More models have been found."""
        if self._picker is not None:
            self._picker.add(self.screen.models)

    def run(self) -> None:
        """Which finished run for the key under the cursor, or for the stage's first key that takes one."""
        screen = self.screen
        keys = [key for key in RUN_KEYS if key in screen.draft.form.fields]
        cursor = screen.query_one(RecipeForm).cursor_key
        if keys:
            self._run(cursor if cursor in keys else keys[0])
        else:
            screen.say(f"no key of a {screen.draft.stage} recipe takes a trained run; m lists the merged ones")

    def name(self) -> None:
        """What the run is to be called."""
        draft = self.screen.draft

        def named(text: str | None) -> None:
            if text is not None:
                draft.name = text.strip() or None
                self.screen.settle()

        question = "A name for the run (empty: made of stage, date and time)"
        check = functools.partial(_name_trouble, self.screen.home)
        self.screen.console_app.push_screen(AskScreen(question, draft.name or "", check=check), named)

    def write(self) -> None:
        """Into which new file the recipe goes: what differs from the defaults."""
        stage, text = self.screen.draft.stage, self.screen.draft.form.to_yaml()

        def answered(name: str | None) -> None:
            if name and name.strip():
                self.screen.begin(self._write(name.strip(), text), group="write")

        question = f"Write the {stage} recipe to a new file"
        self.screen.console_app.push_screen(AskScreen(question, f"{stage}.yaml"), answered)

    def open(self) -> None:
        """Which recipe file."""
        stage = self.screen.draft.stage

        def answered(name: str | None) -> None:
            if not name or not name.strip():
                return
            read = functools.partial(read_file, _path(name), stage)
            if self.screen.draft.touched:
                self.sure("Replace what was typed into the form?", "replace it", lambda: self.load(read))
            else:
                self.load(read)

        question = f"Open a recipe file (of {stage}, unless its first line names another stage)"
        self.screen.console_app.push_screen(AskScreen(question, placeholder="path"), answered)

    def load(self, read: Callable[[], Source]) -> None:
        """Fill the form with what a thread reads."""
        self.screen.begin(self._load(read), group="load", exclusive=True)

    def sure(self, question: str, action: str, then: Callable[[], None]) -> None:
        """Yes or no."""
        self.screen.console_app.push_screen(ConfirmScreen(question, action), lambda yes: then() if yes else None)

    async def _load(self, read: Callable[[], Source]) -> None:
        try:
            source = await asyncio.to_thread(read)
        except UsageError as error:
            self.screen.tell(str(error))
            return
        self.screen.draft.take(source)
        self.screen.show_form()
        if source.notes:
            self.screen.say("; ".join(note.rstrip(".") for note in source.notes))

    async def _write(self, name: str, text: str) -> None:
        try:
            file = await asyncio.to_thread(write_file, _path(name), text)
        except UsageError as error:
            self.screen.say(str(error), trouble=True)
        else:
            self.screen.say(f"written: {file}")

    def _run(self, key: str) -> None:
        self.screen.begin(self._choose_run(key), group="runs", exclusive=True)

    async def _choose_run(self, key: str) -> None:
        screen = self.screen
        found = await asyncio.to_thread(run_choices, screen.home, RUN_KEYS[key])
        if not screen.is_current:
            return
        picker = PickScreen(
            f"{key}: a finished {' or '.join(RUN_KEYS[key])} run",
            found,
            screen.draft.form.text(key),
            typed=lambda text: [Choice(value=text, title=one_line(text), facts="as typed")],
            hint="words to filter, or a path",
        )
        self._show(picker, key)

    def _show(self, picker: PickScreen, key: str) -> None:
        def picked(value: str | None) -> None:
            self._picker = None
            if value is not None:
                self.screen.set_value(key, value)

        self.screen.console_app.push_screen(picker, picked)


def _name_trouble(home: Home, text: str) -> str:
    """Why a run cannot have this name; empty where it can, or where none is given."""
    try:
        if (name := text.strip()) and (home.runs_dir / check_run_id(name)).exists():
            return f"A run {name} exists already; choose another name."
    except (UsageError, OSError) as error:
        return str(error)
    return ""


def _path(text: str) -> Path:
    try:
        return Path(text.strip()).expanduser().absolute()
    except RuntimeError:  # `~nobody`: a name like any other
        return Path(text.strip()).absolute()
