"""The launch being prepared: a form per stage, the run's name, and where its values came from. No Textual.

Reading (:func:`read_run`, :func:`read_file`) is for threads; a :class:`Draft` belongs to one thread alone.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from stackllama_engine.contract.base import DEMO_BASE, DEMO_RECIPE
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.recipe import AnyRecipe, PipelineRecipe
from stackllama_engine.contract.recipe_io import load_recipe, read_recipe
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import Stage
from stackllama_engine.data.kinds import DEMO
from stackllama_engine.launch.inputs import INPUTS
from stackllama_engine.launch.slurm_queue import job_of

from ..sanitise import one_line
from .demo_recipe import demo_values
from .form import PROGRAM, Form
from .input_check import MODEL

ADAPTER = "adapter_path"
_CARRIED = (MODEL, "dataset_name")
"""What another stage's form takes over, where nothing was typed in it."""
_PATHS = (MODEL, ADAPTER, "reward_model_path", "policy_adapter_path", "base_model_name_or_path")
_SPLITS = ("dataset_train_split", "dataset_test_split")
_DOWNLOADS = ("model_revision", "dataset_streaming")
_FUNCTIONS = ("reward_funcs", "reward_func_paths", "reward_columns", "reward_kwargs")
_OUTPUTS = ("adapter", "merged")
_MOST_RECIPE = 1 << 20
_STAGE_LINE = re.compile(r"#\s*stage:\s*(\w+)\s*")


class LaunchForm(Form):
    """A form that also keeps a launch's errors.

    A launch's refusal is kept until a value changes; what :func:`.input_check.find_unusable` says about the names of
    models, data and runs, as long as the field holds that name.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._refused: dict[str, str] = {}
        self._unusable: dict[str, tuple[str, str]] = {}  # key → the text that was looked up, what is wrong with it
        self._looked_up: dict[str, str] | None = None

    def refuse(self, message: str) -> str:
        """Put a launch's refusal under the keys that it names.

        Returns:
            The first of them; empty where it names no key of the form.
        """
        self._refused = {key: text for key, text in self._blame(message, None).items() if key}
        return next(iter(self._refused), "")

    def inputs(self) -> dict[str, str]:
        """Return the values that name models, data, splits, runs and functions, as far as they are given."""
        looked_up = (*INPUTS, *_SPLITS, *_DOWNLOADS, *_FUNCTIONS)
        named = {key: self.text(key) for key, field in self.fields.items() if field.name in looked_up}
        return {key: text for key, text in named.items() if text}

    @property
    def looked_up(self) -> bool:
        """True once all inputs have been checked."""
        return self._looked_up == self.inputs()

    def take_unusable(self, inputs: dict[str, str], unusable: dict[str, str]) -> bool:
        """Take the errors of these inputs; returns whether the form's errors changed.

        Args:
            inputs: as they were looked up.
            unusable: key → why it cannot be used; under an empty key what names its keys itself.
        """
        before = self.errors()
        self._looked_up = inputs
        named = {key: text for key, text in unusable.items() if key}
        blamed = (self._blame(unusable[""], None) if unusable.get("") else {}) | named
        self._unusable = {key: (inputs.get(key, ""), text) for key, text in blamed.items()}
        return self.errors() != before

    def errors(self) -> dict[str, str]:
        """Return :meth:`Form.errors`, what cannot be used, and what a launch refused."""
        unusable = {
            key: wrong
            for key, (text, wrong) in self._unusable.items()
            if not key or key not in self.fields or self.text(key) == text
        }
        return unusable | super().errors() | self._refused

    def recipe(self) -> AnyRecipe | None:
        """Return :meth:`Form.recipe`; what was refused or could not be used does not prevent another try."""
        return None if super().errors() else self._recipe

    def estimable(self) -> AnyRecipe | None:
        """Return the recipe with a placeholder for every missing value; None while a value is wrong."""
        self.errors()
        return self._recipe

    def _changed(self) -> None:
        self._refused = {}
        super()._changed()


class Source(Struct, frozen=True, kw_only=True):
    """A recipe from somewhere else."""

    recipe: AnyRecipe
    origin: str
    """``cloned from …``, sanitised."""
    notes: tuple[str, ...] = ()
    """Sentences on how its keys were read."""
    sbatch: dict[str, str] | None = None
    """Options of sbatch of a Slurm run; None: not a Slurm run."""


class Draft:
    """The launch being prepared.

    Args:
        home: where the run will live.
        stage: the first form shown.
        model: goes into the forms that take a model; empty: none yet.
    """

    def __init__(self, home: Home, stage: Stage, model: str = "") -> None:
        self.home = home
        self.stage = stage
        self.name: str | None = None
        """The run's id; None: one is made."""
        self.after: str | None = None
        """The run whose end a launch waits for."""
        self.allow: tuple[str, ...] = ()
        """Findings of the checks at launch that a person allowed."""
        self._forms: dict[Stage, LaunchForm] = {}
        self._sources: dict[Stage, Source] = {}
        self._models: dict[Stage, str] = {}  # as follow_model last saw them
        self._brought: dict[Stage, dict[str, str]] = {}  # by follow_model
        self._touched = False
        self._carried = {MODEL: model} if model else {}
        if model and stage is not Stage.MERGE:
            self.form.set(MODEL, model)
            self.follow_model()

    @property
    def form(self) -> LaunchForm:
        """The current stage's form."""
        if self.stage not in self._forms:
            self._forms[self.stage] = LaunchForm(self.stage)
        return self._forms[self.stage]

    @property
    def origin(self) -> str:
        """Where this stage's values came from, in words; empty: they were typed."""
        return self._sources[self.stage].origin if self.stage in self._sources else ""

    @property
    def sbatch(self) -> dict[str, str] | None:
        """Options of sbatch where the form was filled from a Slurm run; None: it runs on this machine."""
        return self._sources[self.stage].sbatch if self.stage in self._sources else None

    @property
    def model_key(self) -> str:
        """The key that says what is trained or merged."""
        return ADAPTER if self.stage is Stage.MERGE else MODEL

    @property
    def model(self) -> str:
        """The model to train, or adapter to merge; empty while none is chosen."""
        return self.form.text(self.model_key)

    @property
    def touched(self) -> bool:
        """True if leaving would lose typed values; the model, with what it brought, is quickly chosen again."""
        brought = {self.model_key: self.model, **self._brought.get(self.stage, {})}
        return self._touched and bool(self.form.differences().items() - brought.items())

    def touch(self) -> None:
        """Note that something was typed."""
        self._touched = True

    def switch(self, stage: Stage) -> None:
        """Show another stage's form; each keeps its own values, and an untouched one takes over model and data."""
        brought = self._brought.get(self.stage, {})
        shared = [key for key in _CARRIED if key in self.form.fields and key not in brought]
        self._carried |= {key: self.form.text(key) for key in shared if self.form.differs(key)}
        self.stage, self.allow = stage, ()
        for key, text in self._carried.items():
            if key in self.form.fields and not self.form.differs(key):
                self.form.set(key, text)
        self.follow_model()

    def follow_model(self) -> bool:
        """Fill in the demo's data set and settings once ``demo`` is the model, and take them back after another.

        What a person typed stays.

        Returns:
            whether values have changed.
        """
        if self.stage is Stage.MERGE or self.model == self._models.get(self.stage, ""):
            return False
        form, self._models[self.stage] = self.form, self.model
        untouched = {key: text for key, text in self._brought.pop(self.stage, {}).items() if form.text(key) == text}
        if self.model != DEMO:
            for key in untouched:
                form.reset(key)
            return bool(untouched)
        brought = {key: text for key, text in demo_values(self.stage).items() if not form.differs(key)}
        for key, text in brought.items():
            form.set(key, text)
        self._brought[self.stage] = brought
        return bool(brought)

    def take(self, source: Source) -> None:
        """Fill the form of the recipe's stage from it."""
        self.stage, self.allow = source.recipe.stage, ()
        self.form.load(source.recipe)
        self._sources[self.stage] = source
        self._models[self.stage] = self.model
        if self.model == DEMO:
            values = demo_values(self.stage)
            self._brought[self.stage] = {key: text for key, text in values.items() if self.form.text(key) == text}
        else:
            self._brought.pop(self.stage, None)
        self._touched = False

    def clear(self) -> None:
        """Put every default back; the model stays, and the demo's data set and settings with it."""
        model = self.model
        self.allow = ()
        self.form.clear()
        for remembered in (self._sources, self._models, self._brought):
            remembered.pop(self.stage, None)
        if model:
            self.form.set(self.model_key, model)
            self.follow_model()

    def command(self) -> str:
        """Return the command line that launches this, quoted for a shell."""
        words = [PROGRAM, "launch", str(self.stage), *self.form.overrides()]
        words += ["--name", self.name] if self.name else []
        words += ["--after", self.after] if self.after else []
        words += [word for name in self.allow for word in ("--allow", name)]
        words += ["--home", str(self.home.path)] if self.home.path != Home().path else []
        if self.sbatch is not None:
            words += ["--slurm", *(f"--sbatch-option={key}={value}" for key, value in self.sbatch.items())]
        return shlex.join(words)


def read_run(home: Home, run_id: str) -> Source:
    """Read a run's recipe, with the ids of the runs that its inputs came from, so that lineage is kept.

    Raises:
        UsageError: no such run, or its recipe is missing or damaged.
    """
    run = home.run(run_id)
    recipe = load_recipe(run.read_state().stage, run.recipe_file)
    job = job_of(run)
    sbatch = (job.options or {}) if job is not None else None
    return Source(recipe=_by_names(home, recipe), origin=f"cloned from {one_line(run.id)}", sbatch=sbatch)


def read_file(file: Path, stage: Stage) -> Source:
    """Read a recipe file, of the stage that its first line names, else of ``stage``.

    Raises:
        UsageError: not a readable recipe of that stage.
    """
    try:
        if not file.is_file():
            raise UsageError(f"{file}: no such recipe file.")
        if file.stat().st_size > _MOST_RECIPE:
            raise UsageError(f"{file}: larger than a recipe can be.")
        with file.open(encoding="utf-8", errors="replace") as opened:
            named = _STAGE_LINE.fullmatch(opened.readline(256))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}.") from None
    if named and named[1] in list(Stage):
        stage = Stage(named[1])
    reading = read_recipe(stage, file)
    return Source(recipe=reading.recipe, origin=f"from {one_line(file.name)}", notes=reading.notes)


def read_demo() -> Source:
    """Read the demo's recipe.

    Raises:
        UsageError: the installation lacks it.
    """
    return msgspec.structs.replace(read_file(DEMO_RECIPE, Stage.PIPELINE), origin="the demo's recipe")


def write_file(file: Path, text: str) -> Path:
    """Write a new recipe file, and return it.

    Raises:
        UsageError: it exists already, or cannot be written.
    """
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
        return file
    except FileExistsError:
        raise UsageError(f"{file} exists already; choose another name.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be written: {error}.") from None


def _by_names(home: Home, recipe: AnyRecipe) -> AnyRecipe:
    if isinstance(recipe, PipelineRecipe):
        sections: dict[str, dict[str, Any]] = msgspec.structs.asdict(recipe)
        named = {stage: section | _named(home, section) for stage, section in sections.items()}
        return msgspec.structs.replace(recipe, **named)
    return msgspec.structs.replace(recipe, **_named(home, msgspec.structs.asdict(recipe)))


def _named(home: Home, values: dict[str, Any]) -> dict[str, str]:
    return {key: name for key in _PATHS if values.get(key) and (name := _name_of(home, values[key]))}


def _name_of(home: Home, value: str) -> str | None:
    """Return ``demo``, or the id of the finished run that left this path; None for anything else."""
    path = Path(value)
    if path == DEMO_BASE:
        return DEMO
    if path.name not in _OUTPUTS or path.parent.parent.resolve() != home.runs_dir.resolve():
        return None
    try:
        return path.parent.name if home.run(path.parent.name).read_state().phase == "finished" else None
    except UsageError:  # removed since: the path says at least where it was
        return None
