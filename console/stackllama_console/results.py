"""Results of runs as lines of text: a pipeline's stages in a table, samples before and after PPO, one run's values.

The commands print them and the monitor shows them.
"""

import textwrap
from collections.abc import Iterator
from typing import Any, cast

from msgspec import json

from stackllama_engine.contract.audit import read_audit
from stackllama_engine.contract.children import CHILDREN, child_id
from stackllama_engine.contract.errors import DamagedError, UsageError
from stackllama_engine.contract.metrics import label_of
from stackllama_engine.contract.run_dir import Home, RunDir, State
from stackllama_engine.contract.stages import Stage

from . import run_facts
from .base_comparison import comparison_lines
from .eval_summary import conditions, temperature_of
from .readings import mappings, read_result
from .sanitise import one_line, sanitise
from .units import duration, fixed, number

Facts = dict[str, Any]

_WIDTH = 78
_RESPONSE_LINES = 8
_SHOWN_ELSEWHERE = frozenset(
    {"stage", "path", "loss_first", "loss_last", "eval_loss", "rewards/accuracies", "temperature", "questions"}
)
"""Keys of a result that its measures or the heading already contain."""


def pipeline_facts(home: Home, run: RunDir, state: State) -> Facts:
    """Return the pipeline's state and, by child (``sft``, ``sft-merged``, …), its result, run and seconds.

    Children that were never started are left out.
    """
    outcome = run_facts.facts(run, state)
    for child in CHILDREN:
        try:
            directory = home.run(child_id(run.id, child.suffix))
            child_state = directory.read_state()
        except UsageError:
            continue
        result = read_result(directory)[0]
        status = {"run": directory.id, "state": child_state.phase, "seconds": run_facts.seconds(child_state)}
        if child_state.stage is Stage.PPO and (temperature := temperature_of(directory)) is not None:
            result = {"temperature": temperature} | result
        outcome[child.suffix] = result | status
    if state.attempt > 1:  # it did not run between its attempts
        begun = [outcome[child.suffix] for child in CHILDREN if child.suffix in outcome]
        outcome["seconds"] = sum(child["seconds"] or 0.0 for child in begun)
    return outcome


def table(facts: Facts) -> list[str]:
    """Return the lines of a table, header first: each stage's measures at start and end, and its wall time."""
    lines = [f"{'':8}{'':24}{'first':>10}   {'last':>10}{'wall time':>14}"]
    for child in CHILDREN:
        if child.suffix in facts:
            lines += _stage(child.suffix, facts[child.suffix])
    if facts.get("seconds") is not None:
        lines.append(f"{'total':55}{duration(facts['seconds']):>14}")
    compared = comparison_lines(_part(facts, "ppo"))
    return [*lines, "", *compared] if compared else lines


def _stage(suffix: str, result: Facts) -> list[str]:
    rows = measures(suffix, result) or [(result["state"], None, None)]
    took = "" if result["seconds"] is None else duration(result["seconds"])
    name = "merge" if suffix.endswith("-merged") else {"sft": "SFT", "ppo": "PPO"}.get(suffix, suffix)
    lines: list[str] = []
    for index, (label, first, last) in enumerate(rows):
        start, time = (name, took) if index == 0 else ("", "")
        arrow = "→" if first is not None else " "
        cells = _cell(first, last), _cell(last, first)
        lines.append(f"{start:8}{label:24}{cells[0]:>10} {arrow} {cells[1]:>10}{time:>14}".rstrip())
    if suffix == "ppo" and result.get("after"):
        lines.append(f"{'':8}held-out: {conditions(result)}")
    return lines


def measures(suffix: str, result: Facts) -> list[tuple[str, Any, Any]]:
    """Return (measure, first, last) of a stage or child; measures that its result lacks are left out.

    A loss of a training batch and one of held-out rows are never on one line.
    """
    before, after = _part(result, "before"), _part(result, "after")
    stage, rows = {
        "sft": (
            Stage.SFT,
            [
                ("eval_loss", None, result.get("eval_loss")),
                ("loss_last", result.get("loss_first"), result.get("loss_last")),
            ],
        ),
        "reward": (Stage.REWARD, [(f"eval_{key}", None, result.get(key)) for key in ("accuracy", "pairs", "ties")]),
        "preference": (
            Stage.PREFERENCE,
            [
                ("eval_rewards/accuracies", None, result.get("rewards/accuracies")),
                ("eval_loss", None, result.get("eval_loss")),
                ("loss_last", result.get("loss_first"), result.get("loss_last")),
            ],
        ),
        "ppo": (
            Stage.PPO,
            [
                ("mean_reward", before.get("mean_reward"), after.get("mean_reward")),
                ("true_utility", before.get("true_utility"), after.get("true_utility")),
                ("kl", before.get("kl"), after.get("kl")),
            ],
        ),
    }.get(suffix, (Stage.MERGE, [("difference", None, result.get("difference"))]))
    return [(label_of(stage, name), first, last) for name, first, last in rows if last is not None]


def sample_lines(facts: Facts) -> list[str]:
    """Return prompts with their responses before and after PPO."""
    lines: list[str] = []
    for heading, scores, text in samples(facts):
        lines += [f"{heading}  {scores}".rstrip(), *(f"    {line}".rstrip() for line in text_lines(text))]
    return lines


def samples(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield (heading, scores, text) of each prompt and its two responses."""
    reward, utility = label_of(Stage.PPO, "objective/scores"), label_of(Stage.PPO, "true_utility")
    for index, sample in enumerate(mappings(_part(facts, "ppo").get("samples")), start=1):
        yield f"Prompt {index}", "", str(sample.get("question", ""))
        for when in ("before", "after"):
            scores = [
                f"{label} {_cell(sample[key])}"
                for label, key in ((reward, f"reward_{when}"), (utility, f"utility_{when}"))
                if sample.get(key) is not None
            ]
            yield f"  {when} PPO", ", ".join(scores), str(sample.get(when, "")) or "(nothing)"


def text_lines(text: str) -> list[str]:
    """Return a response wrapped to the width of the table, cut after some lines."""
    lines = [
        part
        for line in sanitise(text).strip().splitlines()
        for part in textwrap.wrap(line.expandtabs(4), _WIDTH - 4) or [""]
    ]
    more = len(lines) - _RESPONSE_LINES
    return [*lines[:_RESPONSE_LINES], *([f"… {more} more lines"] if more > 0 else [])]


def result_lines(run: RunDir, stage: Stage) -> list[str]:
    """Return the values of ``result.json``, one per line; of a damaged one that it is."""
    result, error = read_result(run)
    if error:
        return [one_line(error)]
    facts = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    lines = [
        f"{_result_label(stage, key)}: {_value_text(value)}"
        for key, value in facts.items()
        if key not in _SHOWN_ELSEWHERE
    ]
    if stage in (Stage.SFT, Stage.PREFERENCE, Stage.PPO):  # PPO's metrics stand under `before` and `after`
        for label, first, last in measures(stage, result):
            before = "" if first is None else f"{_value_text(first, last)} → "
            lines.append(f"{label}: {before}{_value_text(last, first)}")
    if stage is Stage.PPO and result.get("after"):
        lines.append(f"held-out: {conditions({'temperature': temperature_of(run)} | result)}")
        compared = comparison_lines(result)
        lines += ["", *compared] if compared else []
        frontier = _frontier_lines(result)
        lines += ["", *frontier] if frontier else []
    return [*lines, *_audit_lines(run)] if stage is Stage.REWARD else lines


def _frontier_lines(result: Facts) -> list[str]:
    """Return reward, KL and selection score of every evaluation of a PPO run; nothing where there was one alone."""
    points = mappings(result.get("frontier"))
    if not points:
        return []
    lines = [f"{'evaluation at step':20}{'reward':>10}{'KL':>10}{'selection':>10}"]
    for point in points:
        cells = "".join(f"{_value_text(point.get(key)):>10}" for key in ("reward", "kl", "selection"))
        lines.append(f"{plain_value(point.get('step')):20}{cells}")
    return lines


def _audit_lines(run: RunDir) -> list[str]:
    """Return what the audit of a reward run says; nothing where none was made."""
    try:
        audit = read_audit(run)
    except DamagedError as error:
        return ["", one_line(str(error))]
    if audit is None:
        return []
    found = [f"  {finding.verdict}: {one_line(finding.text)}" for finding in audit.findings]
    return ["", f"audit: {audit.verdict}; all of it: `stackllama-console audit {run.id}`", *found]


def _result_label(stage: Stage, key: str) -> str:
    """Return the label of a key of ``result.json``; those of pairs are of held-out ones there."""
    name = f"eval_{key}" if stage in (Stage.REWARD, Stage.PREFERENCE) else key
    label = label_of(stage, name)
    return key if label == name else label


def plain_value(value: Any) -> str:
    """Return a value as it is written in a recipe."""
    return value if isinstance(value, str) else json.encode(value).decode()


def _value_text(value: Any, beside: Any = None) -> str:
    return number(value, beside=_size(beside)) if value is None or isinstance(value, float) else plain_value(value)


def _size(value: Any) -> float:
    return float(value) if isinstance(value, float) else 0.0


def _part(value: Facts, key: str) -> Facts:
    part: Any = value.get(key)
    return cast("Facts", part) if isinstance(part, dict) else {}


def _cell(value: Any, beside: Any = None) -> str:
    if isinstance(value, float):
        text = number(value, beside=_size(beside))
        return text if 0 < abs(value) < 1e-3 and text != "0" else fixed(value, 3)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
