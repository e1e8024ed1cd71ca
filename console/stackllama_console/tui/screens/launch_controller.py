"""The launch being prepared: what was read for it, its plan, its launch. No Textual: a screen renders it.

Coroutines read and launch in threads and return what a screen needs to know; they change nothing but the controller.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

from msgspec import Struct, structs

from stackllama_engine.contract.errors import RefusedError, StackllamaError, UsageError
from stackllama_engine.contract.recipe import AnyRecipe
from stackllama_engine.contract.run_dir import Home, RunDir, check_run_id
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch import launcher

from ...readers.budget_inputs import Devices, NamedModels, Shapes, read_devices, read_shapes
from ...readers.budget_view import BudgetView, build_view
from ...readers.choices import RUN_KEYS, Choice, model_choice, model_folders, run_choices
from ...readers.draft import ADAPTER, Draft, LaunchForm, Source, write_file
from ...readers.input_check import find_unusable, find_withheld, names_from_hub
from ...readers.model_catalog import find_models
from ...settings import Settings

STAGES = tuple(Stage)
_BATCH = 25  # models shown at a time while they are being found
_PAUSE = 0.1  # seconds between a changed model name and the reading of its files
_HUB_PAUSE = 0.5  # seconds without a change before the hub is asked about what is typed
_MOVED = 0.02  # share of a device's memory below which a change is not shown


class Summary(Struct, frozen=True, kw_only=True):
    """Summary of a launch, for a person to confirm."""

    title: str
    run: str
    """The run's name, or its stage where the launch is to name it."""
    rows: tuple[tuple[str, str], ...]
    """Label → text, foreign; shown plain."""
    verdict: str = "unknown"
    reason: str = ""
    command: str
    """The command of this program, as it would be typed."""
    worker: str = ""
    """The command of the worker, as it would run; empty while that is not known."""
    error: str = ""
    """The reason why it cannot be launched as it is."""
    notices: tuple[str, ...] = ()
    """What the launch says about it: how data is read, and warnings."""


Confirm = Callable[[Summary], Awaitable[bool]]
"""Shows a plan to a person; whether they confirmed it."""


class LaunchController:
    """State of one launch screen and everything it can do.

    Args:
        home: where the run will live.
        settings: last stage and model; brought up to date by a launch.
    """

    def __init__(self, home: Home, settings: Settings) -> None:
        self.home = home
        self.settings = settings
        stage = Stage(settings.stage) if settings.stage in STAGES else Stage.SFT
        self.draft = Draft(home, stage, settings.model)
        self.models: list[Choice] = []
        self.adapters: list[Choice] | None = None
        """Finished runs with an adapter; None: not read yet."""
        self.budget: BudgetView | None = None
        self.message = ""
        """The last error, until something changes."""
        self.busy = False
        """True while a launch is being planned, confirmed or made; there is one at a time."""
        self.launching = False
        """True while a run is being made."""
        self.waits_for = ""
        """Where the input check waits for the hub: the names that it asks about."""
        self._devices: Devices | None = None
        self._shapes: Shapes | None = None

    # reading

    def poll_devices(self) -> Devices | None:
        """Return the memory of this machine where it changed enough to matter. For a thread."""
        devices = read_devices()
        return devices if self._devices is None or _moved(self._devices, devices) else None

    def take_devices(self, devices: Devices) -> None:
        """Estimate against this memory from now on."""
        self._devices = devices

    async def find_models(self) -> AsyncGenerator[None]:
        """Fill :attr:`models`; yields after every batch."""
        recent = list(self.settings.recent_models)
        entries = find_models(self.home, recent, model_folders(recent))
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(entries, _BATCH))):
            self.models = [*self.models, *map(model_choice, batch)]
            yield

    async def find_adapters(self) -> None:
        """Fill :attr:`adapters`."""
        self.adapters = await self.find_runs(ADAPTER)

    async def find_runs(self, key: str) -> list[Choice]:
        """Return the finished runs that a recipe key takes."""
        return await asyncio.to_thread(run_choices, self.home, RUN_KEYS[key])

    async def read_shapes(self, models: NamedModels) -> bool:
        """Read the files of the models that the form named; False where it names others by now."""
        await asyncio.sleep(_PAUSE if self._shapes else 0)
        shapes = await asyncio.to_thread(read_shapes, self.home, models)
        if shapes.models != self.named_models:
            return False
        self._shapes = shapes
        return True

    async def look_up(self, form: LaunchForm) -> AsyncGenerator[bool]:
        """Check whether a launch would take what the form names; yields False before it waits for the hub.

        Ends with True where the form's errors may have changed, and without it where the form names something else by
        now, or another one is shown.
        """
        self.waits_for = ""
        await asyncio.sleep(_PAUSE)
        inputs, recipe = form.inputs(), form.estimable()
        unusable = await asyncio.to_thread(find_unusable, self.home, inputs, recipe, self.draft.allow)
        if not unusable and recipe is not None:
            self.waits_for = ", ".join(await asyncio.to_thread(names_from_hub, self.home, recipe))
            if self.waits_for:
                yield False
                await asyncio.sleep(_HUB_PAUSE)
                unusable = await asyncio.to_thread(find_withheld, self.home, recipe)
                self.waits_for = ""
        if form is self.draft.form and inputs == form.inputs():
            form.take_unusable(inputs, unusable)
            yield True

    @property
    def named_models(self) -> NamedModels:
        """The models that the form names."""
        form = self.draft.form
        reward = form.text("reward_model_path") if self.draft.stage is Stage.PPO else ""
        return NamedModels(self.draft.stage, self.draft.model, reward)

    @property
    def shapes(self) -> Shapes | None:
        """Shapes of the models that the form names; None while they are being read."""
        return self._shapes if self._shapes and self._shapes.models == self.named_models else None

    # the form

    @property
    def choices(self) -> Sequence[Choice]:
        """Models, or adapters of a merge, that were found so far."""
        return self.adapters or [] if self.draft.stage is Stage.MERGE else self.models

    def problem(self) -> str:
        """Return what is wrong, in one text; empty where nothing is."""
        errors = self.draft.form.errors()
        return self.message or errors.get("", "") or "; ".join(f"{key}: {text}" for key, text in errors.items())

    def refuse(self, message: str) -> str:
        """Keep why nothing was launched; returns the first key that it names, or an empty text."""
        self.message = message
        return self.draft.form.refuse(message)

    def allow(self, names: Sequence[str]) -> None:
        """Allow findings of the checks from now on, for this launch."""
        self.draft.allow = (*self.draft.allow, *names)
        self.message = ""

    def switch(self, direction: int) -> None:
        """Go to the next or previous stage; every stage keeps what was typed."""
        self.draft.switch(STAGES[(STAGES.index(self.draft.stage) + direction) % len(STAGES)])
        self.message = ""

    def clear(self) -> None:
        """Put every default back; the model stays."""
        self.draft.clear()
        self.message = ""

    def rename(self, text: str) -> None:
        """Name the run; an empty text leaves the name to the launch."""
        self.draft.name = text.strip() or None
        self.message = ""

    def name_error(self, text: str) -> str:
        """Return why a run cannot have this name; empty where it can, or where none is given. For a thread."""
        try:
            if (name := text.strip()) and (self.home.runs_dir / check_run_id(name)).exists():
                return f"A run {name} exists already; choose another name."
        except (UsageError, OSError) as error:
            return str(error)
        return ""

    def run_key(self, cursor: str) -> str:
        """Return the key that takes a trained run: the one under the cursor, else the stage's first, else empty."""
        keys = [key for key in RUN_KEYS if key in self.draft.form.fields]
        return cursor if cursor in keys else keys[0] if keys else ""

    async def load(self, read: Callable[[], Source]) -> Source:
        """Fill the form with what a thread reads.

        Raises:
            UsageError: it cannot be read; the form stays as it is.
        """
        source = await asyncio.to_thread(read)
        self.draft.take(source)
        self.message = ""
        return source

    async def write(self, name: str, text: str) -> Path:
        """Write a new recipe file.

        Raises:
            UsageError: it exists already, or cannot be written.
        """
        return await asyncio.to_thread(write_file, recipe_path(name), text)

    def estimate(self) -> BudgetView:
        """Estimate the form's memory from what has been read so far."""
        shapes, devices = self.shapes, self._devices or Devices()
        recipe = self.draft.form.estimable()
        missing = (shapes.error if shapes else "reading the model …") if recipe else "a value is wrong"
        view = build_view(
            recipe,
            shapes.architecture if shapes else None,
            devices.gpus,
            devices.ram,
            model=shapes.entry.title if shapes and shapes.entry else self.draft.model,
            reward=shapes.reward if shapes else None,
            error=devices.error or (missing if self.draft.model else ""),
            calibration=shapes.calibration if shapes else None,
        )
        self.budget = structs.replace(view, note="GPUs unknown") if devices.error else view
        return self.budget

    # launching

    async def launch(self, recipe: AnyRecipe, confirm: Confirm) -> RunDir | None:
        """Plan the launch, let a person confirm the plan, and carry out that plan.

        Args:
            recipe: the form's.
            confirm: shows the plan's summary and asks.

        Returns:
            the run; None: it was not confirmed, or a launch is under way already.

        Raises:
            StackllamaError: refused, or not started.
        """
        if self.busy:
            return None
        self.busy = True
        try:
            model = self.draft.model
            form, inputs = self.draft.form, self.draft.form.inputs()
            planned, summary = await self._plan(recipe)
            form.take_unusable(inputs, {})  # what was wrong with them is no more
            if not await confirm(summary):
                return None
            self.launching = True
            run = await asyncio.to_thread(launcher.launch, planned)
        finally:
            self.busy = self.launching = False
        self.settings.stage = str(planned.stage)
        if model and planned.stage is not Stage.MERGE:
            self.settings.remember_model(model)
        return run

    async def describe(self) -> Summary:
        """Summarise what would be launched now, launchable or not."""
        summary = self._summary()
        recipe = self.draft.form.recipe()
        if recipe is None:
            return structs.replace(summary, error=self.problem() or "The form has errors.")
        try:
            return (await self._plan(recipe))[1]
        except StackllamaError as error:
            return structs.replace(summary, error=str(error))

    async def _plan(self, recipe: AnyRecipe) -> tuple[launcher.Plan, Summary]:
        draft, summary = self.draft, self._summary()  # of this moment: the form may change while it is planned
        if draft.sbatch is not None:
            raise RefusedError(
                f"{draft.origin}, a Slurm run: launched here it would train on this machine. Submit it instead: "
                f"{draft.command()}"
            )
        planned = await asyncio.to_thread(
            launcher.plan, self.home, recipe, draft.name, after=draft.after, allow=draft.allow
        )
        return planned, structs.replace(summary, worker=planned.command.in_shell(), notices=planned.notices)

    def _summary(self) -> Summary:
        draft, view = self.draft, self.budget
        if draft.origin:
            moved = [f"{key} {old or 'empty'} → {new or 'empty'}" for key, (old, new) in draft.form.changes().items()]
            changes = ("source", f"{draft.origin}: {'; '.join(moved) or 'nothing differs'}")
        else:
            typed = [f"{key}={text}" for key, text in draft.form.differences().items() if key != draft.model_key]
            changes = ("changed", "  ".join(typed) or "nothing (all defaults)")
        rows = [
            ("adapter" if draft.stage is Stage.MERGE else "model", draft.model or "none yet"),
            ("run", draft.name or f"{draft.stage}-… (stage, date and time)"),
            changes,
            ("home", str(draft.home.path)),
        ]
        if draft.after:
            rows.insert(2, ("after", f"{draft.after}, when it has ended and the GPUs have room"))
        return Summary(
            title=f"launch {draft.stage}",
            run=draft.name or str(draft.stage),
            rows=tuple(rows),
            verdict=view.verdict if view else "unknown",
            reason=view.reason if view else "",
            command=draft.command(),
        )


def recipe_path(text: str) -> Path:
    """Return the absolute path that a person typed."""
    try:
        return Path(text.strip()).expanduser().absolute()
    except RuntimeError:  # `~nobody`: a name like any other
        return Path(text.strip()).absolute()


def _moved(before: Devices, now: Devices) -> bool:
    pairs = [*zip(before.gpus, now.gpus, strict=False), *([(before.ram, now.ram)] if before.ram and now.ram else [])]
    return (len(before.gpus), bool(before.error)) != (len(now.gpus), bool(now.error)) or any(
        one.name != other.name or abs(one.free - other.free) > _MOVED * other.total for one, other in pairs
    )
