"""``data``: prepare a Stack Exchange dump, preview a source.

A preview is read by a process of its own (``python -m stackllama_engine.data``): a hub source needs ``datasets``,
which must not come into this one.
"""

import argparse
import sys
from typing import Any

import msgspec

from stackllama_engine.contract.errors import ExitCode, UsageError
from stackllama_engine.contract.recipe import SFTRecipe
from stackllama_engine.contract.recipe_io import load_recipe
from stackllama_engine.contract.stages import Stage

from ..sanitise import one_line, sanitise
from ..units import duration
from .child import document_of
from .output import paint, say, show, show_fields, show_json

_TEXT_LINES = 24


def prepare(arguments: argparse.Namespace) -> int:
    """Run ``data prepare POSTS.xml --out DIR``."""
    from stackllama_engine.data.prepare import prepare as prepare_dump

    from .progress import counting

    with counting() as on_progress:
        report = prepare_dump(
            arguments.posts,
            arguments.out,
            seed=arguments.seed,
            on_progress=on_progress,
            on_notice=lambda text: say(f"note: {one_line(text)}"),
        )
    if arguments.json:
        show_json(msgspec.to_builtins(report) | {"out": str(arguments.out.absolute())})
        return ExitCode.DONE
    splits = [
        f"{name}: {count.pairs:,} pairs of {count.questions:,} questions" for name, count in report.splits.items()
    ]
    skipped = [f"{reason}: {count:,}" for reason, count in report.skipped.items()]
    show_fields(
        [
            ("source", f"{report.source}, sha256 {report.sha256[:16]}…"),
            ("questions", f"{report.questions:,}, {report.questions_with_two_answers:,} with two answers or more"),
            ("answers", f"{report.answers:,}"),
            ("pairs", f"{report.pairs:,}; {report.ties:,} ties and {report.over_limit:,} over the limit left out"),
            ("splits", "\n".join(splits)),
            ("skipped", "\n".join(skipped) or "nothing"),
            ("took", duration(report.seconds)),
            ("written to", str(arguments.out.absolute())),
            ("licence", report.licence.partition(":")[0]),
        ]
    )
    return ExitCode.DONE


def preview(arguments: argparse.Namespace) -> int:
    """Run ``data preview SOURCE``."""
    if arguments.model or arguments.recipe:
        from . import token_preview

        tokens = token_preview.read(arguments)
        show_json(tokens) if arguments.json else token_preview.show_tokens(tokens)
        return ExitCode.DONE
    rows = _read_preview(arguments)
    if arguments.json:
        show_json(rows)
        return ExitCode.DONE
    _show_preview(rows)
    return ExitCode.DONE


def _read_preview(arguments: argparse.Namespace) -> dict[str, Any]:
    words = ["preview", f"--count={arguments.rows}"]
    for name in ("split", "config", "revision"):
        value = getattr(arguments, name)
        words += [f"--{name}={value}"] if value is not None else []
    words += [f"--columns={msgspec.json.encode(_columns(arguments)).decode()}"]
    return document_of("stackllama_engine.data", [*words, "--", arguments.source], arguments.source)


def _columns(arguments: argparse.Namespace) -> dict[str, str]:
    """Return `dataset_columns`, the one key that a preview without a stage takes.

    Raises:
        UsageError: another key, or the stage of no recipe.
    """
    others = [word for word in arguments.words if word.partition("=")[0].partition(".")[0] != "dataset_columns"]
    if others or arguments.stage:
        wrong = f"`{others[0]}`" if others else "`--stage`"
        raise UsageError(f"{wrong} needs `--model NAME` or `--recipe FILE`; only `dataset_columns` does not.")
    recipe = load_recipe(Stage.SFT, None, ["model_name_or_path=demo", *arguments.words])
    assert isinstance(recipe, SFTRecipe)
    return recipe.dataset_columns


def _show_preview(preview: dict[str, Any]) -> None:
    total = f"{preview['total']:,}" if preview["total"] is not None else "not counted"
    lengths = [
        f"{one_line(column)}: {length['shortest']:,} – {length['longest']:,}, median {length['median']:,}"
        for column, length in preview["lengths"].items()
    ]
    fields = [
        ("source", f"{one_line(preview['source'])} ({preview['kind']}), split {one_line(preview['split'])}"),
        ("rows", total),
        ("columns", ", ".join(map(one_line, preview["columns"]))),
        (f"characters, first {preview['looked_at']} rows", "\n".join(lengths)),
    ]
    if stages := preview.get("stages"):
        fields.append(("usable for", ", ".join(stages)))
    if notices := preview.get("notices"):
        fields.append(("note", "\n".join(map(one_line, notices))))
    if counts := preview.get("counts"):
        fields.append(("pairs by split", ", ".join(f"{one_line(name)} {count:,}" for name, count in counts.items())))
    if skipped := preview.get("skipped"):
        fields.append(("skipped", "\n".join(f"{one_line(reason)}: {count}" for reason, count in skipped.items())))
    show_fields(fields)
    for index, row in enumerate(preview["rows"]):
        sys.stdout.write("\n" + paint(f"row {index + 1}, as the model reads it", "bold", sys.stdout) + "\n")
        texts = preview["texts"]
        _show_text(texts[index] if index < len(texts) else row.get("question", ""))
        if worse := row.get("response_k"):
            sys.stdout.write(paint("  rejected response", "bold", sys.stdout) + "\n")
            _show_text(worse)


def _show_text(text: str) -> None:
    lines = sanitise(text).splitlines()
    for line in lines[:_TEXT_LINES]:
        show(f"    {line}".rstrip())
    if len(lines) > _TEXT_LINES:
        show(f"    … {len(lines) - _TEXT_LINES} more lines")
