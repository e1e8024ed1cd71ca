"""Checks at launch: what a stage would refuse later, and what would make its result mean nothing.

Each row of :data:`CHECKS` is one check of a recipe, against the files of its model or against its lineage: the data and
the runs that it builds on. A pipeline runs all of them for all its stages, so that the last one's refusal is known
before the first one runs. The files of a hub model that is not in the cache are not checked. No check loads anything.
A finding is an error or a warning (``warns``); some errors become warnings by name (``--allow``).
"""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from ..budget import gguf, known, safetensors
from ..budget.architecture import Architecture
from ..budget.model_files import read_architecture, read_config
from ..contract.atomic_files import existing
from ..contract.errors import FindingsError, RecipeError, RefusedError, StackllamaError, UsageError
from ..contract.recipe import AnyRecipe, PipelineRecipe, PPORecipe, RewardRecipe, SFTRecipe, TrainedRecipe
from ..contract.stages import PIPELINE_STAGES, Stage
from .base_check import find_lost_base, find_other_base
from .eval_size import find_too_small
from .hub_cache import cached_model
from .installed_types import can_classify, has_default_targets
from .lineage import Trained, trained_before
from .module_names import HEADS, TIED, module_names, short_names, taken, takes
from .prompt_overlap import held_out_prompts_trained_on, rl_prompts_trained_on
from .sections import PLACEHOLDER, stage_recipe
from .token_ids import special_ids
from .tokenizer_check import find_no_end_token, find_ordinary_stop, find_other_tokenizer

_POSITIONS = {
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "openai-gpt": "n_positions",
    "opt": "max_position_embeddings",
    "gpt_neo": "max_position_embeddings",
    "biogpt": "max_position_embeddings",
}
"""Types that learn a vector for each position, and the key that says how many."""
_DEFAULT_LOST = frozenset({"mixtral"})
"""Types of PEFT's table whose default it loses (0.21) while it rewrites targets for fused experts."""


class Case(Struct, frozen=True, kw_only=True):
    """One stage, what the files of its model say, and what it builds on."""

    recipe: TrainedRecipe
    before: Sequence[Trained] = ()
    """Trainings that it builds on."""
    path: Path
    """Directory or ``.gguf`` file of its model."""
    known: bool = True
    """Whether these are here and can be read."""
    config: dict[str, Any] = {}
    """``config.json``."""
    architecture: Architecture | None = None
    """None: its sizes are not all there."""
    cached: bool = False
    """Its files are the hub cache's: what is missing of them is downloaded."""

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part of the configuration."""
        inner = self.config.get("text_config")
        return cast("dict[str, Any]", inner) if isinstance(inner, dict) else self.config

    @property
    def model_type(self) -> str:
        """The name under which transformers and PEFT look it up."""
        name = self.config.get("model_type")
        return name if isinstance(name, str) else ""

    @property
    def counted(self) -> Architecture | None:
        """The architecture where its modules are known by name."""
        return self.architecture if self.architecture and self.architecture.unknown is None else None


class Check(Struct, frozen=True):
    """One check; it finds an error with its way out, or None."""

    name: str
    """Short and stable; people write it after ``--allow``."""
    find: Callable[[Case], str | None]
    refuses: bool = False
    """No change of the recipe but another model helps."""
    warns: bool = False
    """The run is launched all the same, with a notice."""
    can_allow: bool = False
    """``--allow NAME`` makes a warning of it."""
    of_recipe: bool = False
    """It needs no files of the model."""


class Problem(Struct, frozen=True):
    """One finding of a check."""

    stage: Stage
    check: Check
    text: str
    allowed: bool = False

    @property
    def warns(self) -> bool:
        """Whether the run is launched all the same."""
        return self.check.warns or self.allowed


def find_problems(recipe: AnyRecipe, allow: Collection[str] = ()) -> list[Problem]:
    """Return all findings of every stage of a recipe, in order; empty where nothing is known to be wrong.

    Args:
        recipe: with its inputs resolved (:mod:`.inputs`).
        allow: names of findings that are to be warnings.
    """
    cases = _cases(recipe)
    pairs = [(case, check) for case in cases for check in CHECKS if case.known or check.of_recipe]
    found = ((case.recipe.stage, check, check.find(case)) for case, check in pairs)
    return [
        Problem(stage, check, text, check.can_allow and check.name in allow) for stage, check, text in found if text
    ]


def preflight(recipe: AnyRecipe, allow: Collection[str] = ()) -> list[str]:
    """Refuse what a stage would refuse later, and what would mean nothing; all errors together.

    Args:
        recipe: with its inputs resolved.
        allow: names of errors that are warnings this time.

    Returns:
        the warnings.

    Raises:
        RecipeError: a change of the recipe is the way out.
        RefusedError: another model is.
        FindingsError: the run could be launched, and the errors can be allowed by name.
    """
    problems = find_problems(recipe, allow)
    errors = [one for one in problems if not one.warns]
    several = isinstance(recipe, PipelineRecipe)
    if not errors:
        return _texts(problems, several=several)
    text = " ".join(_texts(errors, several=several))
    names = tuple(dict.fromkeys(one.check.name for one in errors))
    if all(one.check.can_allow for one in errors):
        raise FindingsError(names, text)
    error: type[StackllamaError] = RefusedError if any(one.check.refuses for one in errors) else RecipeError
    raise error(text)


def check_names(names: Collection[str]) -> None:
    """Check what is given to ``--allow``.

    Raises:
        UsageError: there is no such error, or it cannot be allowed.
    """
    known = [check.name for check in CHECKS if check.can_allow]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"`--allow {unknown[0]}`: the findings that can be allowed are {', '.join(known)}.")


def _texts(problems: Sequence[Problem], *, several: bool) -> list[str]:
    """Return the findings as text, each once; with its stages where there are several."""
    by_text: dict[str, list[str]] = {}
    for one in problems:
        said = f"{one.text} (allowed: {one.check.name})" if one.allowed else one.text
        by_text.setdefault(said, []).append(str(one.stage))
    return [f"{', '.join(stages)}: {text}" if several else text for text, stages in by_text.items()]


def training_stages(recipe: AnyRecipe) -> list[TrainedRecipe]:
    """Return the stages that train, each with the model that it will have."""
    if isinstance(recipe, TrainedRecipe):
        return [recipe]
    if not isinstance(recipe, PipelineRecipe):
        return []
    base = stage_recipe(recipe, Stage.SFT)
    assert isinstance(base, SFTRecipe)
    model = {"model_name_or_path": base.model_name_or_path}
    recipes: list[TrainedRecipe] = []
    for stage in PIPELINE_STAGES:
        wired = model if stage is not Stage.PPO else model | {"reward_model_path": PLACEHOLDER}
        part = stage_recipe(recipe, stage, wired if stage is not Stage.SFT else {})
        assert isinstance(part, TrainedRecipe)
        recipes.append(part)
    return recipes


def _cases(recipe: AnyRecipe) -> list[Case]:
    """Return the stages that train, each with those before it and what these were made from."""
    cases: list[Case] = []
    stages: list[Trained] = []
    for one in training_stages(recipe):
        earlier = {trained.name: trained for trained in [*stages, *trained_before(one)]}
        cases.append(_case(one, tuple(earlier.values())))
        stages.append(Trained(f"the pipeline's {one.stage} stage", one))
    return cases


def _case(recipe: TrainedRecipe, before: Sequence[Trained]) -> Case:
    """Read the model's files, where they are here."""
    name = recipe.model_name_or_path
    local = existing(name)
    path = local or cached_model(name, revision=recipe.model_revision)
    if path is None:
        return Case(recipe=recipe, before=before, path=Path(name), known=False)
    try:
        config = read_config(path) if path.is_dir() else gguf.as_config(gguf.read_header(path), path)
    except (UsageError, OSError):  # the stage says what is wrong with its model; here nothing is known
        return Case(recipe=recipe, before=before, path=path, known=False)
    try:
        architecture = read_architecture(path)
    except (UsageError, OSError):  # of a kind without the sizes that a budget needs, or truncated: see _weights
        architecture = None
    return Case(recipe=recipe, before=before, path=path, config=config, architecture=architecture, cached=local is None)


def _weights(case: Case) -> str | None:
    if not case.path.is_dir():
        return None
    try:
        files = safetensors.read_files(case.path)
    except UsageError as error:
        return f"{error} Fetch or copy it again."
    except OSError as error:
        return f"{error.filename}: cannot be read: {error.strerror}."
    if files.missing and not case.cached:
        names = [name for name in files.names if not (case.path / name).is_file()]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{case.path / names[0]}{more}: a weight file that the model's index names is missing; fetch it."
    return None


def _targets(case: Case) -> str | None:
    recipe, arch = case.recipe, case.counted
    if not recipe.use_peft or (isinstance(recipe, PPORecipe) and recipe.policy_adapter_path):
        return None  # a continued adapter has its own
    targets = recipe.lora_target_modules
    if targets is None:
        known_default = has_default_targets(case.model_type) is not False and case.model_type not in _DEFAULT_LOST
        if not case.model_type or known_default:
            return None
        example = f"some of {', '.join(short_names(arch))}" if arch else "[q_proj, v_proj] where the model has them"
        kind = case.model_type[:40]
        return f"`lora_target_modules` is needed, as PEFT has no default for `{kind}`; set {example}, or all-linear."
    if arch is None:
        return None
    has = f"the modules of {arch.model_type} are {', '.join(short_names(arch))}"
    names = module_names(arch, recipe.stage)
    if isinstance(targets, list):
        absent = [target for target in targets if not takes(target, names)]
        if not absent:
            return None
        said, wrong = ", ".join(absent), f"{arch.name} has no such module" + (" to adapt" if arch.expert else "")
        return f"`lora_target_modules={said}`: {wrong}; {has}."
    try:
        if taken(targets, names):
            return None
        wrong = "is a pattern that matches the full name of no module"
    except re.error as error:
        wrong = f"is not a valid pattern: {error}"
    hint = f"; for several names write [{targets}]" if "," in targets else ""
    return f"`lora_target_modules={targets}`: a text {wrong}{hint}; {has}."


def _tied(case: Case) -> str | None:
    """Check for targets that are embedding and head at once, and for an SFT head, which TRL refuses once loaded."""
    recipe, targets = case.recipe, case.recipe.lora_target_modules
    if not recipe.use_peft or not targets:
        return None
    hit = _ends(targets, case) & TIED
    if recipe.stage in (Stage.SFT, Stage.PREFERENCE) and (heads := hit & HEADS):
        return (
            f"`lora_target_modules` holds `{min(heads)}`: this stage computes its loss from the head's own weights and "
            "would not train an adapter there; leave it out."
        )
    arch = case.counted
    is_tied = arch.tied if arch else case.text.get("tie_word_embeddings") is True
    if not hit or not is_tied or recipe.stage is Stage.REWARD:
        return None
    return (
        f"`lora_target_modules` holds `{min(hit)}`: head and embedding of this model are one matrix "
        "(`tie_word_embeddings`), so an adapter on one would change the other as well once it is merged; leave it out."
    )


def _ends(targets: list[str] | str, case: Case) -> set[str]:
    """Return last names of the selected modules; where modules are not known, of the targets themselves."""
    if isinstance(targets, list):
        return {target.rpartition(".")[2] for target in targets}
    if case.counted is None:
        return set()
    try:
        return {name.rpartition(".")[2] for name in taken(targets, module_names(case.counted, case.recipe.stage))}
    except re.error:  # said by the row before
        return set()


def _classifier(case: Case) -> str | None:
    if not isinstance(case.recipe, RewardRecipe) or can_classify(case.model_type) is not False:
        return None
    return (
        f"`{case.model_type[:40]}`: transformers has no sequence-classification class for this architecture, which a "
        "reward model is; choose a base of another one, or train PPO with `reward_funcs`."
    )


def _length(case: Case) -> str | None:
    key = _POSITIONS.get(case.model_type)
    most = case.text.get(key) if key else None
    most = most if most is not None or key is None else case.text.get("max_position_embeddings")  # as .gguf files say
    if type(most) is not int or most < 1:
        return None
    recipe = case.recipe
    if isinstance(recipe, PPORecipe):
        longest = recipe.max_prompt_length - 1 + recipe.longest_response  # a longer prompt is dropped
        named = f"`max_prompt_length={recipe.max_prompt_length}` and {recipe.length_key}"
        named += f" make up to {longest} tokens"
    else:
        longest, named = recipe.max_length, f"`max_length={recipe.max_length}`"
    if longest <= most:
        return None
    return f"{named}: the model has learned {most} positions (`{key}`) and fails beyond; lower it to at most {most}."


def _token_ids(case: Case) -> str | None:
    rows = case.text.get("vocab_size")
    if not case.path.is_dir() or type(rows) is not int:
        return None
    for role, (token, number) in special_ids(case.path).items():
        if number >= rows:
            return (
                f"{case.path}: the tokenizer's {role} token {token[:40]!r} has the id {number}, and the model has rows "
                f"for {rows} tokens; choose a {role} token below that in tokenizer_config.json, or resize the model's "
                "embedding."
            )
    return None


def _experts(case: Case) -> str | None:
    recipe = case.recipe
    if not recipe.quantised or not (count := known.experts_of(case.config)):
        return None
    return (
        f"`base_precision: {recipe.base_precision}`: the {count} experts of each layer are one parameter, which "
        "bitsandbytes does not quantise, so they would take more than in 16 bits; set `base_precision: bf16`."
    )


def _critic_layers(case: Case) -> str | None:
    recipe = case.recipe
    if not isinstance(recipe, PPORecipe) or not case.architecture or not recipe.has_separate_critic:
        return None  # without a critic of its own the key has no effect
    depth = case.architecture.layers
    if recipe.critic_layers(depth) <= depth:
        return None
    return (
        f"`value_adapter_layers: {recipe.value_adapter_layers}`: {recipe.model_name_or_path} has {depth} layers; use "
        "fewer, or leave it empty."
    )


CHECKS: tuple[Check, ...] = (
    Check("weights", _weights, refuses=True),
    Check("classifier", _classifier, refuses=True),
    Check("token-ids", _token_ids, refuses=True),
    Check("no-end-token", lambda case: find_no_end_token(case.path), refuses=True),
    Check("experts", _experts),
    Check("targets", _targets),
    Check("tied-targets", _tied),
    Check("length", _length),
    Check("critic-layers", _critic_layers),
    Check("adapter-base", lambda case: find_lost_base(case.recipe), refuses=True, of_recipe=True),
    Check("tokenizer", lambda case: find_other_tokenizer(case.recipe, case.path), can_allow=True),
    Check(
        "eval-prompts",
        lambda case: held_out_prompts_trained_on(case.recipe, case.before),
        can_allow=True,
        of_recipe=True,
    ),
    Check("rl-prompts", lambda case: rl_prompts_trained_on(case.recipe, case.before), warns=True, of_recipe=True),
    Check("eval-size", lambda case: find_too_small(case.recipe), warns=True, of_recipe=True),
    Check("reward-base", lambda case: find_other_base(case.recipe), warns=True, of_recipe=True),
    Check("stop-token", lambda case: find_ordinary_stop(case.recipe, case.path), warns=True),
)
"""In the order in which they are reported; a new refusal of a stage, or finding about its result, is a new row."""
