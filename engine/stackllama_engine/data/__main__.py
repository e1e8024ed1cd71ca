"""``python -m stackllama_engine.data prepare|preview``: a JSON document on stdout, an error as a line on stderr."""

import argparse
import contextlib
import sys
from pathlib import Path

import msgspec

from ..contract.errors import StackllamaError
from ..contract.streams import open_standard_streams
from .prepare import prepare
from .preview import look


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        # Libraries print progress to stdout; it carries the document alone.
        with contextlib.redirect_stdout(sys.stderr):
            result = options.run(options)
    except StackllamaError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return int(error.exit_code)
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stackllama_engine.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare", help="a dump's Posts.xml to a prepared directory")
    one.add_argument("posts", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--site", default="")
    one.set_defaults(run=lambda o: prepare(o.posts, o.out, seed=o.seed, site=o.site, on_notice=_say))
    two = commands.add_parser("preview", help="the first rows of a source")
    two.add_argument("source")
    two.add_argument("--split")
    two.add_argument("--count", type=int, default=3)
    two.add_argument("--config")
    two.add_argument("--revision")
    two.set_defaults(run=lambda o: look(o.source, o.split, count=o.count, config=o.config, revision=o.revision))
    return parser


if __name__ == "__main__":
    open_standard_streams()
    raise SystemExit(main())
