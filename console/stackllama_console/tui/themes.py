"""Colour themes: YAML files with checked values, turned into Textual's.

A file with an error is reported in one sentence and skipped; the console never fails over a colour.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta, Struct
from textual.color import Color, ColorParseError
from textual.theme import Theme

import stackllama_console
from stackllama_engine.contract.user_files import read_text
from stackllama_engine.contract.user_yaml import load_yaml

from ..paths import themes_dir
from ..sanitise import one_line

DEFAULT = "dusk"
CURVES = 6
_MOST_BYTES = 64 * 1024
_ANSI_PREFIX = "ansi_"
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]


class ThemeFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``themes/*.yaml``."""

    name: Name
    primary: str
    secondary: str
    accent: str
    success: str
    warning: str
    error: str
    foreground: str
    background: str
    surface: str
    panel: str
    curves: Annotated[list[str], Meta(min_length=CURVES, max_length=CURVES)]
    dark: bool = True
    ansi: bool = False


def built_in_dir() -> Path:
    """Return the directory of our own themes: in the package when installed, else in the checkout."""
    package = Path(stackllama_console.__file__).resolve().parent
    installed = package / "themes"
    return installed if installed.is_dir() else package.parents[1] / "themes"


def load_themes(directories: Iterable[Path] | None = None) -> tuple[list[Theme], list[str]]:
    """Return all valid themes, those of later directories winning, and one sentence for each invalid file."""
    themes: dict[str, Theme] = {}
    notices: list[str] = []
    for directory in directories or (built_in_dir(), themes_dir()):
        for file in sorted(directory.glob("*.yaml")):
            try:
                theme = read_theme(file)
            except ValueError as error:
                notices.append(f"theme skipped: {one_line(str(error))}")
            else:
                themes[theme.name] = theme
    return list(themes.values()), notices


def read_theme(file: Path) -> Theme:
    """Read one theme.

    Raises:
        ValueError: not readable, or a wrong key or value; names the file and what is wrong in it.
    """
    try:
        text = read_text(file, _MOST_BYTES)
        ours = file.parent == built_in_dir()  # in anybody else's, endless nesting would end the process in C
        raw: Any = yaml.load(text, Loader=_FAST) if ours else load_yaml(text)  # noqa: S506 - a safe loader
        theme_file = msgspec.convert(raw, ThemeFile)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    colours: dict[str, Any] = {field: getattr(theme_file, field) for field in _COLOURS}
    for key, value in (
        *colours.items(),
        *((f"curves[{index}]", value) for index, value in enumerate(theme_file.curves)),
    ):
        _check(file, key, value, theme_file.ansi)
    variables = {f"curve-{index}": value for index, value in enumerate(theme_file.curves, start=1)}
    if not theme_file.ansi:  # a cursor bar that stands out in every theme, with the text on it readable
        variables |= {"block-cursor-background": theme_file.primary, "block-cursor-foreground": theme_file.background}
        variables |= {"footer-key-foreground": theme_file.accent}
    else:  # Textual's widgets ask an ansi theme for this one besides its own
        variables |= {"ansi-background": "ansi_black" if theme_file.dark else "ansi_white"}
        variables |= {"block-cursor-background": "ansi_blue", "block-cursor-foreground": "ansi_bright_white"}
    return Theme(name=theme_file.name, dark=theme_file.dark, ansi=theme_file.ansi, variables=variables, **colours)


_COLOURS = (
    "primary",
    "secondary",
    "accent",
    "success",
    "warning",
    "error",
    "foreground",
    "background",
    "surface",
    "panel",
)


def _check(file: Path, key: str, value: str, ansi: bool) -> None:
    try:
        colour = Color.parse(value)
    except ColorParseError:
        raise ValueError(f'{file}: `{key}: {value}`: expected a colour, e.g. "#rrggbb"') from None
    if ansi != value.startswith(_ANSI_PREFIX):
        expected = "one of ansi_black … ansi_bright_white or ansi_default" if ansi else '"#rrggbb"'
        raise ValueError(f"{file}: `{key}: {value}`: expected {expected}")
    if not ansi and colour.a != 1:
        raise ValueError(f"{file}: `{key}: {value}`: expected an opaque colour")
