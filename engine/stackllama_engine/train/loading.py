"""Errors of loading: one sentence with the file and the whole reason, and no invitation to trust a file."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..budget.safetensors import read_header
from ..contract.errors import StageError, UsageError
from .faults import memory_that_ran_out

_LIBRARY = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""Errors that libraries raise about files: damaged, of another shape, with a null or without a key that they read. Not
:class:`.signals.Stopped`."""
_CODE = re.compile(r"trust_remote_code|custom code")
_NO_SAFETENSORS = re.compile(r"(no file named|not appear to have a file named).*safetensors")  # transformers' words
_REPORTED = re.compile(r"MISMATCH|CONVERSION")  # a line of transformers' load report, to which its error refers
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 700  # characters of a reason


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turn a library's error about a model, an adapter or a tokenizer into one of ours.

    Raises:
        StageError: it cannot; says which file, and why.
    """
    report = _Report()
    logger = logging.getLogger("transformers")
    logger.addHandler(report)
    try:
        yield
    except _LIBRARY as error:
        if memory_that_ran_out(error):
            raise
        hub = "" if Path(name).exists() else " (no run and no local path has this name, so it was taken for a hub id)"
        raise StageError(f"Cannot load the {what} of {name}{hub}: {_reason(error, name, report.lines)}") from error
    finally:
        logger.removeHandler(report)


def one_line(error: BaseException) -> str:
    """Join a library's message of many lines into one; the first line alone often lacks the reason."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def damaged_file(path: Path) -> str | None:
    """Describe the first safetensors file of a model or an adapter whose header cannot be read; None: all can."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else []:
        try:
            read_header(file)
        except UsageError as error:
            return str(error)
        except OSError as error:
            return f"{file}: {error.strerror}."
    return None


def _reason(error: Exception, name: str, report: list[str]) -> str:
    """Return the library's reason; where it wants to execute code, why that is refused."""
    text = str(error)
    if _CODE.search(text):
        return (
            "it needs code from its own repository, which is never executed. Use a model whose architecture "
            "transformers has built in."
        )
    if _NO_SAFETENSORS.search(text):
        return (
            "it has no weights in safetensors; other formats hold pickles, which can execute code, and are not read. "
            "Convert them where that can do no harm (`save_pretrained` writes safetensors), or name a revision that "
            "has them (`model_revision`)."
        )
    if damage := damaged_file(Path(name)):
        return f"{damage} Copy or download it again."
    reason = f"its weights do not fit its config.json: {'; '.join(report)}" if report else one_line(error)
    if isinstance(error, OSError | StageError) or (isinstance(error, ValueError) and reason):
        return reason
    return f"{type(error).__name__}: {reason}"


class _Report(logging.Handler):
    """Catches the lines of transformers' load report that say what did not fit; its error only points there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the lines that are the reason."""
        for line in _COLOURS.sub("", record.getMessage()).splitlines():
            if _REPORTED.search(line) and "|" in line:
                self.lines.append(" ".join(line.replace("|", " ").split()))
