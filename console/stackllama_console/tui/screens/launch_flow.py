"""From the form to a run: plan in a thread, a last look, launch in a thread, the run's monitor."""

import asyncio
from typing import TYPE_CHECKING

from stackllama_engine.contract.errors import StackllamaError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.run_dir import RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher

from ...readers.draft import worker_command
from ...sanitise import one_line
from .launch_confirm import CommandScreen, Summary

if TYPE_CHECKING:
    from .launch import LaunchScreen


class LaunchFlow:
    """The launching of one launch screen; one launch at a time."""

    def __init__(self, screen: "LaunchScreen") -> None:
        self.screen = screen
        self.busy = False
        self.launching = False
        """Whether a run is being made at this moment."""

    def begin(self) -> None:
        """Check everything, then ask."""
        if not self.busy:
            self.screen.begin(self._begin(), group="launch")

    def show_commands(self) -> None:
        """The commands, launchable or not."""
        self.screen.begin(self._show_commands(), group="commands", exclusive=True)

    async def _begin(self) -> None:
        draft = self.screen.draft
        recipe = draft.form.recipe()
        if recipe is None:
            self.screen.show_errors()
            return
        self.busy = True
        try:
            name, stage = draft.name, draft.stage
            summary, refusal = await self._summary(recipe)
            if refusal:
                self.screen.refuse(refusal)
            elif self.screen.is_current and await self._ask(summary):
                await self._launch(stage, recipe, name)
        finally:
            self.busy = False

    async def _ask(self, summary: Summary) -> bool:
        return bool(await self.screen.console_app.push_screen_wait(CommandScreen(summary, ask=True)))

    async def _launch(self, stage: Stage, recipe: AnyRecipe, name: str | None) -> None:
        screen = self.screen
        screen.say(f"launching {name or stage} …")
        self.launching = True
        try:
            run = await asyncio.to_thread(launcher.launch, screen.home, stage, recipe, name)
        except StackllamaError as error:
            screen.refuse(str(error))
            return
        finally:
            self.launching = False
        self._remember(stage, recipe)
        self._follow(run)

    def _remember(self, stage: Stage, recipe: AnyRecipe) -> None:
        settings = self.screen.settings
        settings.stage = str(stage)
        if model := self.screen.draft.model if stage is not Stage.MERGE else "":
            settings.remember_model(model)
        self.screen.console_app.remember()

    def _follow(self, run: RunDir) -> None:
        """The monitor in this screen's place, unless somebody went elsewhere meanwhile."""
        app = self.screen.console_app
        if not self.screen.is_current:
            app.notify(one_line(f"{run.id} has been launched"), markup=False)
            return
        app.pop_screen()
        app.open_run(run.id)

    async def _show_commands(self) -> None:
        recipe = self.screen.draft.form.recipe()
        if recipe is None:
            summary = self._described("", self.screen.problem() or "The form has errors.")
        else:
            summary, refusal = await self._summary(recipe)
            summary = summary if not refusal else self._described("", refusal)
        if self.screen.is_current:
            self.screen.console_app.push_screen(CommandScreen(summary, ask=False))

    async def _summary(self, recipe: AnyRecipe) -> tuple[Summary, str]:
        """What would run; or why nothing would."""
        draft = self.screen.draft
        if draft.sbatch is not None:
            return self._described("", ""), (
                f"{draft.origin}, a Slurm run: launched here it would train on this machine. Submit it instead: "
                f"{draft.command()}"
            )
        try:
            plan = await asyncio.to_thread(launcher.plan, draft.home, draft.stage, recipe, draft.name)
        except StackllamaError as error:
            return self._described("", ""), str(error)
        return self._described(worker_command(plan), ""), ""

    def _described(self, worker: str, trouble: str) -> Summary:
        draft, view = self.screen.draft, self.screen.budget
        changes = [f"{key}={text}" for key, text in draft.form.differences().items() if key != draft.model_key]
        rows = [
            ("adapter" if draft.stage is Stage.MERGE else "model", draft.model or "none yet"),
            ("run", draft.name or f"{draft.stage}-… (stage, date and time)"),
            ("changed", "  ".join(changes) or "nothing: every value is the default"),
            ("home", str(draft.home.path)),
        ]
        return Summary(
            title=f"launch {draft.stage}",
            rows=tuple(rows),
            verdict=view.verdict if view else "unknown",
            reason=view.reason if view else "",
            command=draft.command(),
            worker=worker,
            trouble=trouble,
        )
