"""Command ``python -m stackllama_engine.data prepare|preview``: JSON on stdout, an error as one line on stderr."""

import argparse
import sys
from pathlib import Path

import msgspec

from ..contract.document import print_document
from ..contract.streams import open_standard_streams
from .prepare import prepare
from .preview import preview_here


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(argv)
    return print_document(lambda: options.run(options))


def _print_notice(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def _columns(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stackllama_engine.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("prepare", help="convert a dump's Posts.xml to a prepared directory")
    make.add_argument("posts", type=Path)
    make.add_argument("--out", type=Path, required=True)
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--site", default="")
    make.set_defaults(run=lambda o: prepare(o.posts, o.out, seed=o.seed, site=o.site, on_notice=_print_notice))
    show = commands.add_parser("preview", help="show the first rows of a source")
    show.add_argument("source")
    show.add_argument("--split")
    show.add_argument("--count", type=int, default=3)
    show.add_argument("--config")
    show.add_argument("--revision")
    show.add_argument("--columns", type=_columns, metavar="JSON", help="`dataset_columns` of a recipe")
    show.set_defaults(
        run=lambda o: preview_here(
            o.source, o.split, count=o.count, config=o.config, revision=o.revision, names=o.columns
        )
    )
    return parser


if __name__ == "__main__":
    open_standard_streams()
    raise SystemExit(main())
