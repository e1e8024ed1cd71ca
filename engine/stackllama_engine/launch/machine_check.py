"""Checks that this machine can run a recipe: packages, GPUs, processes; without importing the packages."""

import importlib.metadata
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import msgspec

import stackllama_engine

from ..contract.attention import FLASH_PACKAGES, check_allowed
from ..contract.errors import RecipeError, RefusedError, how_to_install
from ..contract.recipe import AnyRecipe, MergeRecipe, PipelineRecipe, PPORecipe, TrainRecipe
from ..contract.stages import PIPELINE_STAGES, Stage
from .sections import map_sections

_NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
_DISTRIBUTIONS = ("stackllama-console", *_NEEDED, "bitsandbytes", "gguf", "vllm", "msgspec")
_REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def resolve_machine(recipe: AnyRecipe, gpus: list[str]) -> AnyRecipe:
    """Check what a recipe needs of this machine, and fill in ``num_processes``.

    Args:
        recipe: any stage's; of a pipeline every section is resolved.
        gpus: the visible GPUs.

    Raises:
        RefusedError: training packages or vLLM are missing, or more processes are asked for than there are GPUs.
        RecipeError: a reporter's package is missing, or a key needs a GPU and the run is on the CPU.
    """
    if isinstance(recipe, PipelineRecipe):
        return map_sections(recipe, lambda section: resolve_machine(section, gpus), (*PIPELINE_STAGES, Stage.MERGE))
    _check_packages(recipe)
    if isinstance(recipe, MergeRecipe):
        return recipe
    on_cpu = recipe.use_cpu or not gpus
    if recipe.fp16 and on_cpu:
        raise RecipeError("recipe: `fp16: true` needs a GPU and this run is on the CPU; use `bf16: true` or neither.")
    if recipe.optim.startswith("paged") and on_cpu:
        raise RecipeError(
            f"recipe: `optim: {recipe.optim}` pages to and from a GPU and this run is on the CPU; "
            "use `optim: adamw_8bit`, or `adamw_torch_fused`."
        )
    if isinstance(recipe, PPORecipe) and recipe.use_vllm and on_cpu:
        raise RecipeError(
            "recipe: `use_vllm: true` needs a GPU and this run is on the CPU; leave it out, or set `use_vllm: false`."
        )
    processes = recipe.num_processes or (1 if on_cpu else len(gpus))
    if processes > max(1, len(gpus)) and not recipe.use_cpu:
        raise RefusedError(
            f"`num_processes: {processes}` exceeds the number of visible GPUs ({len(gpus)}); "
            "set a smaller number, or set `use_cpu: true` for several processes on the CPU."
        )
    recipe = msgspec.structs.replace(recipe, num_processes=processes)
    return _in_steps(recipe, processes) if isinstance(recipe, PPORecipe) else recipe


def _in_steps(recipe: PPORecipe, processes: int) -> PPORecipe:
    """Convert ``total_episodes`` to ``max_steps``, rounded up as in TRL; needs the number of processes."""
    if recipe.total_episodes is None:
        return recipe
    steps = math.ceil(recipe.total_episodes / (recipe.local_batch_size * processes))
    return msgspec.structs.replace(recipe, max_steps=steps, total_episodes=None)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on; missing packages are left out."""
    versions = {"python": sys.version.split()[0], "stackllama-console": stackllama_engine.__version__}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit of the checkout this package runs from, with ``+`` when files differ; None without one."""
    package = Path(stackllama_engine.__file__).resolve().parent
    if "site-packages" in package.parts:  # installed: a repository around the environment is not ours
        return None
    try:
        head = _git(package, "rev-parse", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):  # no git here, or not a checkout
        return None
    return head + ("+" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    # Without optional locks: `git status` refreshes the index, and killed meanwhile leaves an index.lock behind.
    argv = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    return subprocess.run(argv, capture_output=True, check=True, timeout=2, text=True).stdout.strip()


def _check_packages(recipe: TrainRecipe | MergeRecipe) -> None:
    needed = list(_NEEDED)
    if isinstance(recipe, TrainRecipe):
        needed += ["bitsandbytes"] if recipe.quantised or "bit" in recipe.optim else []
        needed += ["gguf"] if recipe.model_name_or_path.endswith(".gguf") else []
        for reporter in recipe.report_to:
            if not any(_installed(name) for name in _REPORTERS[reporter]):
                raise RecipeError(
                    f"recipe: `report_to: {reporter}` needs a package that is not installed: `pip install {reporter}`."
                )
    missing = [name for name in needed if not _installed(name)]
    if missing:
        raise RefusedError(f"Training needs {', '.join(missing)}, not installed here: {how_to_install('train')}.")
    if isinstance(recipe, TrainRecipe):
        _check_attention(recipe.attn_implementation)
        if recipe.use_liger_kernel and not _installed("liger_kernel"):
            raise RefusedError(
                f"`use_liger_kernel: true` needs liger-kernel, not installed here: {how_to_install('fast')}, or set "
                "`use_liger_kernel: false`."
            )
    if isinstance(recipe, PPORecipe) and recipe.use_vllm and not _installed("vllm"):
        raise RefusedError(
            f"`use_vllm: true` needs vllm, not installed here: {how_to_install('vllm')}, or set `use_vllm: false`."
        )


def _check_attention(implementation: str | None) -> None:
    check_allowed(implementation)
    needed = FLASH_PACKAGES.get(implementation or "") or ("kernels" if "/" in (implementation or "") else None)
    if needed is None:
        return
    try:
        importlib.metadata.version(needed)
    except importlib.metadata.PackageNotFoundError:
        raise RecipeError(
            f"recipe: `attn_implementation: {implementation}` needs the package {needed}, which is not installed; "
            "install it, or use `sdpa`."
        ) from None


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
