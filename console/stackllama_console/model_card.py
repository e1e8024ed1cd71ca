"""Model card of an exported run: what it was trained on, how it did, how prompts are written, how it is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml
from msgspec import Struct

from stackllama_engine.contract.children import known_parents
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.metrics import label_of
from stackllama_engine.contract.prompt_format import PromptFormat
from stackllama_engine.contract.recipe_io import PATH_KEYS, load_recipe
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage
from stackllama_engine.launch.export import Base, Result, is_hub_id

from .eval_summary import conditions, temperature_of
from .readings import read_launch, read_result, recipe_differences
from .results import measures, plain_value
from .sanitise import one_line
from .units import number

TITLES = {
    Stage.SFT: "supervised fine-tuning",
    Stage.REWARD: "reward modelling",
    Stage.PREFERENCE: "preference optimisation (DPO)",
    Stage.PPO: "PPO",
}
_TASKS = {False: "CausalLM", True: "SequenceClassification"}
_ELSEWHERE = "By another program; here it was only merged."
_MOST_RUNS = 30
_ALWAYS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "reward_model_path",
    "reward_funcs",
    "base_precision",
    "seed",
)
"""Keys of a recipe that are stated whether they are the default or not, unless they are empty or false."""


class Card(Struct, frozen=True, kw_only=True):
    """Facts of a model card."""

    name: str
    result: Result
    base: Base | None
    prompt_format: PromptFormat | None
    origin: str | None
    """Hub id of the model that the line of runs began with."""


def write_card(home: Home, card: Card) -> str:
    """Return the text of ``README.md``; its YAML front matter is the hub's."""
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {card.name}",
        _summary(home, card),
        "## Load it",
        *_loading(home, card),
        "## Prompt format",
        *_prompts(card.prompt_format),
        "## Training",
        *_training(home, card),
        *_results(card),
        *_versions(card),
        "## Licence",
        "This card states no licence: add `license:` to the lines at the top. The licences of the base model and of "
        "the data apply.",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> dict[str, Any]:
    result = card.result
    facts: dict[str, Any] = {}
    if card.origin:
        facts |= {"base_model": card.origin, "base_model_relation": "adapter" if result.is_adapter else "finetune"}
    facts |= {
        "library_name": "peft" if result.is_adapter else "transformers",
        "pipeline_tag": "text-classification" if result.is_reward else "text-generation",
        "tags": ["stackllama-console", str(result.stage), *(["lora"] if result.is_adapter else [])],
    }
    data = _whole_recipe(result).get("dataset_name")
    return facts | ({"datasets": [data]} if isinstance(data, str) and "/" in data and is_hub_id(data) else {})


def _summary(home: Home, card: Card) -> str:
    result = card.result
    what = "LoRA adapter" if result.is_adapter else "merged model" if result.trained != result.run else "model"
    name = _cell(_place(home, card.base.name)) if card.base else None
    base = f" of `{name}`" if name else f", made from `{card.origin}`" if card.origin else ""
    by = f", trained by {TITLES[result.stage]}" if result.stage in TITLES else ""
    advantage = _whole_recipe(result).get("advantage", "gae") if result.stage is Stage.PPO else ""
    by += f" (`advantage: {advantage}`)" if advantage not in ("", "gae") else ""
    critic = " The policy alone: the critic is not part of it." if advantage == "gae" else ""
    return f"A {what}{base}{by} with stackllama-console.{critic}"


def _loading(home: Home, card: Card) -> list[str]:
    task = _TASKS[card.result.is_reward]
    library = f"peft.AutoPeftModelFor{task}" if card.result.is_adapter else f"transformers.AutoModelFor{task}"
    score = ", num_labels=1" if card.result.is_reward else ""
    imports = "import peft, transformers" if card.result.is_adapter else "import transformers"
    lines = [
        "In this folder, or with its address on the hub instead of the dot:",
        "```python",
        imports,
        'tokenizer = transformers.AutoTokenizer.from_pretrained(".")',
        f'model = {library}.from_pretrained("."{score})',
        "```",
    ]
    text = [lines[0], "\n".join(lines[1:])]
    if card.base and card.base.is_local:
        made = f", the result of the run `{card.base.run}`" if card.base.run else ""
        text.append(
            f"**The base is on the machine of the training only**: `{_cell(_place(home, card.base.name))}`{made}. "
            "To load the adapter elsewhere, export the base as well and write its new address into "
            "`adapter_config.json` (`base_model_name_or_path`), or export the merged model."
        )
    if not card.result.is_reward:
        text.append("`generation_config.json` holds every token that ends a response, and how responses were sampled.")
    return text


def _prompts(prompt_format: PromptFormat | None) -> list[str]:
    if prompt_format is None:
        return ["Not recorded."]
    shown = {
        "question_answer": "One question, written as\n\n```\nQuestion: {question}\n\nAnswer: \n```\n\nwith a space at "
        "the end. The tokenizer's chat template writes the same.",
        "chat": "Messages, written by the tokenizer's chat template, which is the one of the training.",
        "none": "Prompt and response one after the other, without a template.",
    }
    text = [shown[prompt_format.kind]]
    if prompt_format.system_prompt:
        quoted = "\n".join(f"> {line}" for line in prompt_format.system_prompt.splitlines())
        text.append(f"Every conversation without a system message of its own began with this one:\n\n{quoted}")
    if prompt_format.enable_thinking is not None:
        text.append(f"The template was given `enable_thinking={prompt_format.enable_thinking}`.")
    return [*text, "`prompt_format.json` records it."]


def _training(home: Home, card: Card) -> list[str]:
    run = card.result.trained
    if run is None:
        parents = known_parents(card.result.run)[:1]
        return [f"By run `{parents[0]}`, which was deleted here." if parents else _ELSEWHERE]
    recipe = _whole_recipe(card.result)
    facts = [(name, _recipe_value(home, name, recipe[name])) for name in _ALWAYS if _is_given(recipe.get(name))]
    result = read_result(run)[0]
    facts += [(key, str(result[key])) for key in ("steps", "tokens", "pairs") if key in result]
    text = [_table(("", ""), [("run", run.id), ("stage", TITLES.get(card.result.stage, "")), *facts])]
    line = _line_of_runs(home, run)
    if len(line) > 1:
        text.append("Made from these runs, in this order:")
        text.append(_table(("run", "stage", "base", "data"), line))
    differences = [(key, value) for key, value in _differences(run, card.result.stage) if key not in _ALWAYS]
    changed = [(key, _recipe_value(home, key, value)) for key, value in differences]
    if changed:
        text.append("Recipe, values that are not the default:")
        text.append(_table(("key", "value"), changed))
    return text


def _line_of_runs(home: Home, run: RunDir) -> list[tuple[str, str, str, str]]:
    """Return the runs that a run came from and itself, parents first; pipelines and deleted runs are left out."""
    found: dict[str, tuple[str, str, str, str]] = {}

    def visit(one: RunDir) -> None:
        if one.id in found or len(found) == _MOST_RUNS or not (one.path / "state.json").is_file():
            return
        try:
            stage, lineage = one.read_state().stage, one.read_json("lineage.json")
        except UsageError:  # damaged: `runs show` says so
            return
        for parent in known_parents(one):
            visit(RunDir(home.runs_dir / parent))
        if stage is not Stage.PIPELINE:
            base: Any = lineage.get("base") or {}
            named = [_place(home, str(name or "")) for name in (base.get("name"), lineage.get("dataset_name"))]
            found[one.id] = (one.id, str(stage), named[0], named[1])

    visit(run)
    return list(found.values())


def _results(card: Card) -> list[str]:
    run, stage = card.result.trained, card.result.stage
    if run is None:
        return []
    result = read_result(run)[0]
    rows = [(label, _value(first), _value(last)) for label, first, last in measures(stage, result)]
    if not rows:
        return []
    text = ["## Results", _table(("", "before", "after"), rows)]
    if stage is Stage.PPO and result.get("after"):
        text.append(f"Held-out prompts, {conditions({'temperature': temperature_of(run)} | result)}.")
    merged = read_result(card.result.run)[0] if card.result.run != run else {}
    if merged.get("difference_from_base") is not None:
        label = label_of(Stage.MERGE, "difference")
        text.append(
            f"{label}: {_value(merged.get('difference'))}, where the adapter changes the base by "
            f"{_value(merged['difference_from_base'])}."
        )
    return text


def _versions(card: Card) -> list[str]:
    launch = read_launch(card.result.trained or card.result.run)[0]
    versions = launch.versions if launch else {}
    return ["## Versions", ", ".join(f"{name} {value}" for name, value in versions.items())] if versions else []


def _whole_recipe(result: Result) -> dict[str, Any]:
    """Return the recipe with every default; empty for a run that is not here or damaged."""
    if result.trained is None:
        return {}
    try:
        return msgspec.to_builtins(load_recipe(result.stage, result.trained.recipe_file))
    except UsageError:
        return {}


def _recipe_value(home: Home, key: str, value: Any) -> str:
    if key in PATH_KEYS and isinstance(value, list):
        value = [_place(home, str(part)) if part else part for part in cast("list[Any]", value)]
    return plain_value(_place(home, value) if key in PATH_KEYS and isinstance(value, str) else value)


def _place(home: Home, name: str) -> str:
    """Return a name without the directories of this machine: of a path under the home's runs what is below them."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return str(path.relative_to(home.runs_dir)) if path.is_relative_to(home.runs_dir) else path.name


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != []


def _differences(run: RunDir, stage: Stage) -> list[tuple[str, Any]]:
    try:
        return list(recipe_differences(run, stage).items())
    except UsageError:  # `runs show` says so
        return []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *(_row([_cell(cell) for cell in row]) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _value(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)
