"""Inputs of the budget besides the recipe: shapes of the models, memory of this machine. For threads."""

from pathlib import Path

from msgspec import Struct

from stackllama_engine.budget.architecture import Architecture
from stackllama_engine.budget.calibration import Calibration
from stackllama_engine.contract.errors import RefusedError, UsageError
from stackllama_engine.contract.run_dir import RUN_ID, Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.contract.user_files import any_object
from stackllama_engine.launch.calibrate import calibration
from stackllama_engine.launch.gpus import visible_gpus
from stackllama_engine.launch.main_memory import main_memory
from stackllama_engine.launch.nvml import find_gpus

from ..sanitise import one_line
from .budget_view import Memory
from .input_check import MODEL, refusal
from .machine import NVML_SECONDS
from .model_catalog import ModelEntry, describe
from .recipe_model import recipe_model

_ADAPTER_FILE = "adapter_config.json"
_MOST_CONFIG = 1 << 20


class NamedModels(Struct, frozen=True):
    """The models that a form names; equal ones need no second reading."""

    stage: Stage
    model: str = ""
    """The model that is trained; of a merge the adapter."""
    reward: str = ""
    """PPO's ``reward_model_path``."""


class Shapes(Struct, frozen=True, kw_only=True):
    """Shapes of the models that a form names."""

    models: NamedModels
    entry: ModelEntry | None = None
    """The model that memory is needed for; None while none is named."""
    reward: Architecture | None = None
    """Architecture of a separate reward model; None: an adapter on the policy's base, or not known."""
    calibration: Calibration | None = None
    """Measurements of finished runs of this home on this machine."""
    error: str = ""

    @property
    def architecture(self) -> Architecture | None:
        """Architecture of the model."""
        return self.entry.architecture if self.entry else None


class Devices(Struct, frozen=True):
    """Memory of this machine."""

    gpus: tuple[Memory, ...] = ()
    ram: Memory | None = None
    error: str = ""
    """Why the GPUs are not known: their driver hangs."""


def read_shapes(home: Home, models: NamedModels) -> Shapes:
    """Read the shapes of the models named. Raises nothing: what cannot be read becomes `error`."""
    if not models.model:
        return Shapes(models=models)
    name = models.model if models.stage is not Stage.MERGE else base_of(home, models.model)
    if not name:
        return Shapes(models=models, error=f"{one_line(models.model)}: its base is not known")
    entry = describe(home, name)
    problem = "" if entry.architecture else refusal(home, MODEL, name) or entry.warning or ""
    local_calibration: Calibration | None = None
    try:
        local_calibration = calibration(home.path)
    except OSError as error:
        problem = problem or one_line(f"{error.filename} cannot be read: {error.strerror}")
    return Shapes(
        models=models,
        entry=entry,
        reward=_own_reward(home, models.reward) if models.reward else None,
        calibration=local_calibration,
        error=problem,
    )


def base_of(home: Home, adapter: str) -> str:
    """Return the model that an adapter (a run, or a directory) was trained on; empty where it is not known."""
    run = _run(home, adapter)
    try:
        if run is not None:
            return recipe_model(run.recipe_file)
        file = Path(adapter).expanduser() / _ADAPTER_FILE
        base = any_object(file, _MOST_CONFIG).get("base_model_name_or_path")
    except (OSError, RuntimeError, ValueError):  # nothing there that could be read: not known
        return ""
    return base if isinstance(base, str) else ""


def read_devices() -> Devices:
    """Read the visible GPUs and the main memory; without a GPU, or a driver for it, the latter alone."""
    memory = main_memory()
    ram = Memory("RAM", memory.total, memory.available)
    try:
        return Devices(tuple(_gpus()), ram)
    except RefusedError as error:
        return Devices((), ram, one_line(str(error).partition(". ")[0]))


def _gpus() -> list[Memory]:
    names = visible_gpus(seconds=NVML_SECONDS)
    if not names:
        return []
    gpus, _, _ = find_gpus(NVML_SECONDS)
    by_index = {str(gpu.index): gpu for gpu in gpus}
    # Named by UUID or as a MIG slice, it cannot be told from the others here: the smallest stands for it.
    smallest = min(gpus, key=lambda gpu: gpu.free, default=None)
    chosen = [by_index.get(name, smallest) for name in names]
    return [Memory(one_line(gpu.name), gpu.memory, gpu.free, f"GPU {gpu.index}") for gpu in chosen if gpu]


def _own_reward(home: Home, value: str) -> Architecture | None:
    """Return the shape of a whole reward model; adapters have none of their own."""
    if run := _run(home, value):
        if run.adapter.is_dir():
            return None
        value = str(run.merged)
    try:
        if (Path(value).expanduser() / _ADAPTER_FILE).is_file():
            return None
    except (OSError, RuntimeError, ValueError):  # no path of ours; a hub id, perhaps
        return None
    return describe(home, value).architecture


def _run(home: Home, name: str) -> RunDir | None:
    if not RUN_ID.fullmatch(name):
        return None
    try:
        return home.run(name)
    except UsageError:  # a name of something else
        return None
