"""``data preview SOURCE --model NAME`` or ``--recipe FILE``: a stage's data as tokens.

A process of the engine reads and tokenises (:mod:`stackllama_engine.train.token_preview`).
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from stackllama_engine.contract.atomic_files import existing_files
from stackllama_engine.contract.old_keys import is_old
from stackllama_engine.contract.recipe import PipelineRecipe, PPORecipe, TrainRecipe
from stackllama_engine.contract.recipe_io import key_types, load_recipe, read_file
from stackllama_engine.contract.reward_parameters import columns_read
from stackllama_engine.contract.run_dir import Home
from stackllama_engine.contract.stages import PIPELINE_STAGES, TRAINING_STAGES, Split, Stage
from stackllama_engine.data.kinds import kind_of
from stackllama_engine.launch.functions import find_function, parameters_of
from stackllama_engine.launch.inputs import INPUTS
from stackllama_engine.launch.sections import PLACEHOLDER, stage_recipe

from ..sanitise import one_line, sanitise
from .child import document_of
from .output import paint, show, show_fields

_MODEL = "model_name_or_path"
_SPLITS = {Stage.SFT: Split.FINETUNE, Stage.REWARD: Split.REWARD, Stage.PREFERENCE: Split.REWARD, Stage.PPO: Split.RL}
_STAGE_LINE = re.compile(r"# stage: (\w+)\n")
_MOST_TOKENS = 300
"""Tokens of an example that are printed; ``--json`` has all."""
_BAR = 40
_TIMEOUT = 600.0  # seconds to import, download and tokenise


def read(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the preview, as the engine's process makes it.

    Raises:
        StackllamaError: recipe, model or data cannot be used.
    """
    sections = _sections(arguments)
    stage = arguments.stage or next(iter(sections))
    own = sections[Stage(stage)]
    before, source = own.dataset_name, str(existing_files(arguments.source) or arguments.source)
    sections = {
        each: msgspec.structs.replace(section, dataset_name=source) if section.dataset_name == before else section
        for each, section in sections.items()
    }
    own = sections[Stage(stage)]
    if arguments.split:
        own = sections[Stage(stage)] = msgspec.structs.replace(own, dataset_train_split=arguments.split)
    if arguments.config:
        own = sections[Stage(stage)] = msgspec.structs.replace(own, dataset_config=arguments.config)
    model = arguments.model or next(iter(sections.values())).model_name_or_path
    path = INPUTS[_MODEL](Home(arguments.home), _MODEL, model, [])
    request = {
        "stage": stage,
        "recipe": msgspec.to_builtins(msgspec.structs.replace(own, model_name_or_path=path)),
        "parts": _parts(sections),
        "count": arguments.rows,
        "columns_read": _columns_read(own),
    }
    module = "stackllama_engine.train.token_preview"
    return document_of(module, [], arguments.source, msgspec.json.encode(request), _TIMEOUT)


def _columns_read(recipe: TrainRecipe) -> list[str] | None:
    """Return the columns that reward functions read, by their sources; None: all, as far as these tell.

    Raises:
        UsageError: there is no such function.
    """
    if not isinstance(recipe, PPORecipe):
        return None
    paths = [find_function(function.reference, function.directory, None) for function in recipe.functions]
    read = columns_read(recipe, list(map(parameters_of, recipe.reward_funcs, paths)))
    return None if read is None else sorted(read)


def _sections(arguments: argparse.Namespace) -> dict[Stage, TrainRecipe]:
    """Return the recipes of all stages of a pipeline's recipe, or of the one stage."""
    words = [*arguments.words, *([f"{_MODEL}=demo"] if arguments.model else [])]
    values = read_file(arguments.recipe) if arguments.recipe else {}
    if set(values) & set(PIPELINE_STAGES):
        recipe = load_recipe(Stage.PIPELINE, arguments.recipe, words)
        assert isinstance(recipe, PipelineRecipe)
        recipes = {stage: stage_recipe(recipe, stage) for stage in PIPELINE_STAGES}
    else:
        keys = {*values, *(word.partition("=")[0].partition(".")[0] for word in arguments.words)}
        stage = Stage(arguments.stage or _named_stage(arguments) or _stage_of(keys))
        scored = [f"reward_model_path={PLACEHOLDER}"] if stage is Stage.PPO and not arguments.recipe else []
        recipes = {stage: load_recipe(stage, arguments.recipe, [*scored, *words])}
    return {stage: recipe for stage, recipe in recipes.items() if isinstance(recipe, TrainRecipe)}


def _named_stage(arguments: argparse.Namespace) -> str | None:
    """Return the stage that a recipe file, which was read before, names in its first line."""
    if not arguments.recipe:
        return None
    named = _STAGE_LINE.match(arguments.recipe.read_text(encoding="utf-8", errors="replace"))
    return named[1] if named and named[1] in TRAINING_STAGES else None


def _stage_of(keys: Iterable[str]) -> Stage:
    """Return the stage that has most of the keys to itself; SFT if every key is also of another."""
    alone: Counter[Stage] = Counter()
    for key in keys:
        having = [stage for stage in TRAINING_STAGES if key in key_types(stage) or is_old(key, key_types(stage))]
        alone.update(having if len(having) == 1 else [])
    return max(TRAINING_STAGES, key=lambda stage: alone[stage])


def _parts(sections: dict[Stage, TrainRecipe]) -> list[dict[str, Any]]:
    """Return every stage's data; without a pipeline's recipe the other stages' are their default splits."""
    own = next(iter(sections.values()))
    parts: list[dict[str, Any]] = []
    instead = {Stage.REWARD: Stage.PREFERENCE} if Stage.PREFERENCE in sections else {}  # both train on the pairs
    for stage in (instead.get(one, one) for one in PIPELINE_STAGES):
        section = sections.get(stage)
        if section is None and kind_of(own.dataset_name) == "hub":
            continue  # its splits have names of their own
        section = section or msgspec.structs.replace(own, dataset_train_split=_SPLITS[stage].value)
        parts.append(
            {
                "stage": stage,
                "name": section.dataset_name,
                "split": section.dataset_train_split,
                "config": section.dataset_config,
                "columns": section.dataset_columns,
            }
        )
    return parts


def show_tokens(preview: dict[str, Any]) -> None:
    """Print a preview."""
    changed = [f"{one_line(reason)}: {count:,}" for reason, count in preview["changed"].items()]
    repeats = [f"{what}: {count:,}" for what, count in preview["duplicates"].items()]
    shared = [
        f"{one['shared']:,} of {one['prompts']:,} prompts of ppo occur in the data of {one['stage']}"
        for one in preview["overlaps"]
    ]
    shared += [f"not compared: {one_line(reason)}" for reason in preview["not_compared"]]
    lengths = [
        f"{name}: " + ", ".join(f"{share} {tokens:,}" for share, tokens in one["percentiles"].items())
        for name, one in preview["lengths"].items()
    ]
    show_fields(
        [
            ("source", f"{one_line(preview['source'])}, split {one_line(preview['split'])}"),
            ("stage", f"{preview['stage']}, prompt format {one_line(preview['prompt_format'])}"),
            ("tokenizer", one_line(preview["model"])),
            ("rows", f"{preview['looked_at']:,} read"),
            ("tokens", "\n".join(lengths)),
            ("left out or cut", "\n".join(changed) or "nothing"),
            ("repeats of an earlier row", "\n".join(repeats)),
            ("prompts shared", "\n".join(shared) or "not compared"),
        ]
    )
    for name in dict.fromkeys(sequence["name"] for sequences in preview["examples"] for sequence in sequences):
        _show_histogram(name, preview["lengths"][name])
    for number, sequences in enumerate(preview["examples"], 1):
        for sequence in sequences:
            _show_sequence(number, sequence)


def _show_histogram(name: str, lengths: dict[str, Any]) -> None:
    _heading(f"{name}: rows by tokens")
    most, bin_width = max(lengths["histogram"]), lengths["bin_width"]
    for index, count in enumerate(lengths["histogram"]):
        first = lengths["start"] + index * bin_width
        bar = "#" * -(-count * _BAR // most)
        show(f"  {first:>7,} – {first + bin_width - 1:<7,} {count:>7,} {bar}".rstrip())


def _show_sequence(number: int, sequence: dict[str, Any]) -> None:
    tokens, loss = sequence["tokens"], sequence["loss"]
    _heading(f"example {number}, {sequence['name']}: {len(tokens):,} tokens, {sum(loss):,} with loss")
    start = 0
    while start < min(len(tokens), _MOST_TOKENS):
        end = next((index for index in range(start, len(tokens)) if loss[index] != loss[start]), len(tokens))
        shown = min(end, _MOST_TOKENS)
        text = "·".join(_token(token) for token in tokens[start:shown])
        label = "loss" if loss[start] else ""
        sys.stdout.write(f"  {paint(label.ljust(4), 'green', sys.stdout)}  {sanitise(text)}\n")
        start = shown
        if shown < end:
            break
    if len(tokens) > _MOST_TOKENS:
        show(f"        … {len(tokens) - start:,} more tokens")


def _token(text: str) -> str:
    """Return a token on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _heading(text: str) -> None:
    sys.stdout.write("\n" + paint(text, "bold", sys.stdout) + "\n")
