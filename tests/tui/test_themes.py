"""Themes: the built-in ones are whole and readable; a wrong file is one sentence and nothing else."""

import re
from pathlib import Path

import pytest
from textual.color import Color

from stackllama_console.tui.themes import built_in_dir, load_themes, read_theme

GOOD = """
name: mine
primary: "#112233"
secondary: "#112233"
accent: "#112233"
success: "#112233"
warning: "#112233"
error: "#112233"
foreground: "#ffffff"
background: "#000000"
surface: "#000000"
panel: "#000000"
curves: ["#111111", "#222222", "#333333", "#444444", "#555555", "#666666"]
"""


def test_built_in_themes_are_complete() -> None:
    themes, notices = load_themes([built_in_dir()])
    assert notices == []
    by_name = {theme.name: theme for theme in themes}
    assert {"dusk", "paper", "contrast", "okabe-ito", "ansi"} <= set(by_name)
    assert by_name["dusk"].dark and not by_name["paper"].dark and by_name["ansi"].ansi


@pytest.mark.parametrize("file", sorted(built_in_dir().glob("*.yaml")), ids=lambda file: file.stem)
def test_text_and_curves_stand_out_from_the_background(file: Path) -> None:
    theme = read_theme(file)
    if theme.ansi:
        pytest.skip("the terminal's own colours: their contrast is the terminal's")
    background = Color.parse(theme.background or "")
    least = 7.0 if theme.name == "contrast" else 4.5  # WCAG 2.2, 1.4.6 and 1.4.3
    for colour in (theme.foreground, theme.primary, theme.error, theme.success, theme.warning):
        assert _contrast(Color.parse(colour or ""), background) >= 4.5
    assert _contrast(Color.parse(theme.foreground or ""), background) >= least
    for index in range(1, 7):
        assert _contrast(Color.parse(theme.variables[f"curve-{index}"]), background) >= 3.0  # graphics: 1.4.11


def test_okabe_ito_uses_the_published_palette() -> None:
    theme = read_theme(built_in_dir() / "okabe-ito.yaml")
    published = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}
    curves = [theme.variables[f"curve-{index}"].upper() for index in range(1, 7)]
    assert set(curves) <= published and len(set(curves)) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('primary: "#112233"', 'primary: "blurple"'), "`primary: blurple`: expected a colour"),
        (('primary: "#112233"', 'primary: "#11223344"'), "expected an opaque colour"),
        (('primary: "#112233"', "primary: ansi_red"), 'expected "#rrggbb"'),
        (("name: mine", "name: ../mine"), "name"),
        (("name: mine", "name: mine\nextra: 1"), "extra"),
        (('"#666666"]', "]"), "curves"),
        (("name: mine", "name: [mine"), "mine.yaml"),
        (("name: mine", "name: !!python/object/apply:os.system ['true']"), "mine.yaml"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_the_others_stay(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "mine.yaml").write_text(GOOD.replace(*change))
    themes, notices = load_themes([built_in_dir(), tmp_path])
    assert len(notices) == 1 and "mine.yaml" in notices[0] and said in notices[0] and "\n" not in notices[0]
    assert {"dusk", "ansi"} <= {theme.name for theme in themes}


def test_a_persons_theme_replaces_a_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "dusk.yaml").write_text(GOOD.replace("name: mine", "name: dusk"))
    themes, notices = load_themes([built_in_dir(), tmp_path])
    assert notices == []
    assert next(theme for theme in themes if theme.name == "dusk").primary == "#112233"


def _contrast(one: Color, other: Color) -> float:
    """Return WCAG 2.2's contrast ratio, from its own formula: (L1 + 0.05) / (L2 + 0.05)."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Color) -> float:
    def linear(channel: int) -> float:
        value = channel / 255
        return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4

    assert re.fullmatch(r"#[0-9A-Fa-f]{6}", colour.hex)
    return 0.2126 * linear(colour.r) + 0.7152 * linear(colour.g) + 0.0722 * linear(colour.b)
