"""``manifest.json`` of a prepared directory: its source, its settings and its counts."""

from pathlib import Path

from msgspec import Struct, field

from ..contract.errors import DataError
from ..contract.stages import Split
from ..contract.user_files import read_json

FORMAT = "stackllama-pairs"
VERSION = 1
MANIFEST = "manifest.json"
LICENCE = (
    "Stack Exchange content, by its authors, under CC BY-SA (2.5, 3.0 or 4.0 by date of the post): "
    "https://stackoverflow.com/help/licensing. Share what you derive from it under the same licence, naming the source."
)


class SplitCount(Struct):
    """Size of one split."""

    questions: int = 0
    """Questions with at least one pair."""
    pairs: int = 0


class Report(Struct, kw_only=True):
    """Result of preparing a dump, which is also the manifest."""

    format: str = FORMAT
    version: int = VERSION
    source: str
    """Name of the dump's file."""
    sha256: str = ""
    site: str = ""
    seed: int = 0
    licence: str = LICENCE
    questions: int = 0
    answers: int = 0
    questions_with_two_answers: int = 0
    """Questions with two answers or more."""
    pairs: int = 0
    ties: int = 0
    """Pairs of answers with equal scores, which are not used."""
    over_limit: int = 0
    """Pairs left out because their question had more than ten."""
    splits: dict[str, SplitCount] = field(default_factory=lambda: {split.value: SplitCount() for split in Split})
    skipped: dict[str, int] = {}
    """Rows of the dump that were skipped, by reason."""
    seconds: float = 0.0


def read_manifest(directory: Path) -> Report:
    """Read the manifest of a prepared directory.

    Raises:
        DataError: unreadable, or of another format or a newer version.
    """
    path = directory / MANIFEST
    try:
        report = read_json(path, Report)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not the manifest of a prepared directory: {error}.") from None
    if report.format != FORMAT or report.version > VERSION:
        raise DataError(
            f"{path}: format {report.format} {report.version}, but this version reads {FORMAT} {VERSION}; "
            "prepare the directory again, or update."
        )
    return report
