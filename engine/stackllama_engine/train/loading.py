"""One sentence instead of transformers' many when a model cannot be had, and no invitation to trust what it holds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..contract.errors import StageError

_CODE = re.compile(r"trust_remote_code|custom code")
_NO_SAFETENSORS = re.compile(r"(no file named|not appear to have a file named).*safetensors")  # transformers' words


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """While a library loads a model or tokenizer.

    Raises:
        StageError: it cannot; says why.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        hub = "" if Path(name).exists() else " (no run and no local path has this name, so it was taken for a hub id)"
        reason = _reason(str(error).strip()) or type(error).__name__
        raise StageError(f"Cannot load the {what} of {name}{hub}: {reason}") from error


def _reason(text: str) -> str:
    """The library's first line; where it would be trusted with code, why that is refused."""
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
    return text.splitlines()[0] if text else ""
