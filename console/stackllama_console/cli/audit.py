"""``audit``: whether a reward model's scores mean what a policy would be trained on."""

import argparse
import sys
from pathlib import Path

import msgspec

from stackllama_engine.contract.audit import AUDIT_FILE, Audit, Interval, read_audit
from stackllama_engine.contract.children import child_id
from stackllama_engine.contract.errors import ExitCode, RefusedError, UsageError
from stackllama_engine.contract.metrics import label_of
from stackllama_engine.contract.run_dir import Home, RunDir
from stackllama_engine.contract.stages import Stage

from ..audit_page import audit_page
from .child import document_of
from .output import paint, say, show, show_json, show_table
from .runs import find

_MODULE = "stackllama_engine.train.audit"
_SECONDS = 3600.0
_COLOURS = {"good": "green", "doubtful": "yellow", "bad": "red"}


def audit(arguments: argparse.Namespace) -> int:
    """Run ``audit RUN``; the exit code does not depend on the verdict."""
    home = Home(arguments.home)
    run = _reward_run(home, find(home, arguments.run))
    found = None if arguments.again else read_audit(run)
    if found is None:
        say(f"auditing {run.id}: its held-out pairs and spoilt responses are scored …")
        words = [str(run.path), *(["--cpu"] if arguments.cpu else [])]
        document = document_of(_MODULE, words, f"`{run.id}`", timeout=_SECONDS)
        found = msgspec.convert(document, Audit)
        run.write_json(AUDIT_FILE, document)
    if arguments.svg:
        _write_page(arguments.svg, audit_page(run.id, found))
    if arguments.json:
        show_json({"run": run.id} | msgspec.to_builtins(found))
    else:
        _show(run.id, found)
    return ExitCode.DONE


def _reward_run(home: Home, run: RunDir) -> RunDir:
    state = run.read_state()
    if state.stage is Stage.PIPELINE:
        return _reward_run(home, home.run(child_id(run.id, "reward")))
    if state.stage is not Stage.REWARD:
        raise RefusedError(f"`{run.id}` is a {state.stage} run; only reward models are audited. Name a reward run.")
    if state.phase != "finished":
        raise RefusedError(f"`{run.id}` is {state.phase}; a reward model is audited when it has finished.")
    return run


def _write_page(file: Path, page: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(page)
    except FileExistsError:
        raise UsageError(f"{file} exists already; name another file.") from None


def _show(name: str, found: Audit) -> None:
    show(f"{name}: {paint(found.verdict, _COLOURS[found.verdict], sys.stdout)}")
    for finding in found.findings:
        show(f"  {finding.verdict}: {finding.text}")
    counted = f"{found.pairs:,} pairs of {found.questions:,} questions"
    counted += f", {found.ties:,} ties apart" if found.ties else ""
    label = label_of(Stage.REWARD, "eval_accuracy")
    show(f"\n{label}  {_percent(found.accuracy)}  ({counted})\n")
    rules = [(one.name, _percent(one.accuracy), _points(one.lead)) for one in found.baselines]
    show_table(("simple rule", "its accuracy", "lead of the reward model"), rules, {}, 0)
    show()
    spoilt = [(one.name, _percent(one.wins), f"{one.change:+.1f} sd") for one in found.probes]
    show_table(("spoilt response", "scores higher than the response", "mean change"), spoilt, {}, 0)
    show()
    for title, parts in (("longer by", found.by_length), ("score difference", found.by_margin)):
        rows = [(one.label, f"{one.pairs:,}", _percent(one.accuracy)) for one in parts]
        show_table((title, "pairs", "accuracy"), rows, {}, 0)
        show()
    show(f"calibration error        {100 * found.calibration_error:.1f} points")
    show(f"correlation with length      {found.length_correlation:+.2f}")
    show(f"correlation with repetition  {found.repetition_correlation:+.2f}")


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} points ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
