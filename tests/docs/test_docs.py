"""README and docs name what is there: files, headings, commands, recipe keys, make targets."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from scripts import reference_pages

from stackllama_console.cli.parser import STAGES, build_parser, parse
from stackllama_console.readers.form_fields import fields_of
from stackllama_console.tui.app import ConsoleApp
from stackllama_console.tui.screens.scopes import all_scopes
from stackllama_engine.contract.errors import UsageError
from stackllama_engine.contract.metrics import METRICS, OTHER
from stackllama_engine.contract.stages import Stage

ROOT = Path(__file__).parents[2]
PROGRAM = "stackllama-console"
DOCUMENTS = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "themes/README.md")]
    + [*(ROOT / "docs").rglob("*.md")]
)
HISTORY = ROOT / "CHANGELOG.md"
"""Says what was there; its commands need not parse today."""
PARSER = build_parser()
NOT_COMMANDS = {
    "demo": "a model, a data source and a split as well as a command",
}
"""Inline code that looks like a command of ours, and what it is."""

SOURCES = ("console", "engine", "tests", "benchmarks", "scripts", "docs")
MAPPINGS = {key for key, field in fields_of(Stage.SFT).items() if field.kind == "mapping"}
PACKAGES = (ROOT / "console" / "stackllama_console", ROOT / "engine" / "stackllama_engine")
FILE_ENDINGS = {"d", "json", "jsonl", "lock", "md", "py", "svg", "toml", "txt", "yaml"}
THEIRS = {"politeness.py"}
"""Python files of a person who follows the documents."""

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^    \S.*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_DOTTED = re.compile(r"(?:stackllama_(?:console|engine)\.)?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Code(NamedTuple):
    """A line of code, or an inline span."""

    document: Path
    text: str
    inline: bool
    language: str = ""


def test_every_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    broken = []
    for document in DOCUMENTS:
        for target in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):  # an address
                continue
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_parses_and_its_recipe_keys_exist(document: Path) -> None:
    if document == HISTORY:
        return
    wrong = [f"{code.text}: {problem}" for code in _code(document) for problem in _problems(code)]
    assert not wrong


def test_a_wrong_command_is_noticed() -> None:
    for text in ("runs lost x", "runs ls --jsn", "launch ppo kl_coeff=1", "data prepare"):
        assert _problems(Code(ROOT / "README.md", f"{PROGRAM} {text}", inline=False)), text
    assert not _problems(Code(ROOT / "README.md", f"{PROGRAM} data prepare", inline=True))


def test_every_recipe_in_yaml_has_known_keys() -> None:
    known = fields_of(Stage.PIPELINE).keys() | {key for stage in STAGES for key in fields_of(Stage(stage))}
    for document in DOCUMENTS:
        for _, language, text in _FENCE.findall(document.read_text(encoding="utf-8")):
            if language == "yaml":
                assert _keys(yaml.safe_load(text)) <= known, document


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        (document.name, target)
        for document in DOCUMENTS
        for code in _code(document)
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)(?:\s|$)", code.text.partition("#")[0])
    }
    assert named and not [each for each in named if each[1] not in targets]


def test_every_named_python_file_exists() -> None:
    files = [f"/{path.relative_to(ROOT)}" for top in SOURCES for path in (ROOT / top).rglob("*.py")]
    missing = {
        (document.name, name)
        for document in DOCUMENTS
        if document != HISTORY
        for code in _code(document)
        for name in re.findall(r"(?:^|[ (])([\w/]+\.py)\b", code.text)
        if name not in THEIRS and not any(file.endswith(f"/{name}") for file in files)
    }
    assert not missing


def test_every_dotted_name_of_our_packages_exists() -> None:
    missing = {
        f"{document.relative_to(ROOT)}: {code.text}"
        for document in DOCUMENTS
        if document != HISTORY
        for code in _code(document)
        if code.inline and (name := _DOTTED.fullmatch(code.text)) and not _resolves(name[1].split("."))
    }
    assert not missing


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("launch.run_requests.stop", True),
        ("run_requests.stop", True),
        ("launch.run_requests", True),
        ("RunDir.read_state", True),
        ("launch.run_requests.lost", False),
        ("launch.lost.stop", False),
        ("RunDir.lost", False),
        ("runs.stop", True),
        ("torch.load", True),
        ("state.json", True),
    ],
)
def test_a_dotted_name_resolves_where_it_exists_or_is_none_of_ours(name: str, exists: bool) -> None:
    assert _resolves(name.split(".")) == exists


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target).resolve() for target in _LINK.findall(index.read_text(encoding="utf-8"))}
    pages = {path for path in (ROOT / "docs").rglob("*.md") if path != index and path.parent.name != "adr"}
    assert not pages - listed


def test_marks_name_a_reference_or_a_file() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for kind, name in re.findall(
            r"^<!-- (reference|file): (\S+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert name in reference_pages.PAGES if kind == "reference" else (ROOT / name).is_file(), page


def test_the_reference_has_every_key_command_and_metric() -> None:
    recipe, commands, metrics = (reference_pages.PAGES[name]() for name in ("recipe", "commands", "metrics"))
    for stage in STAGES[:4]:
        for key in fields_of(Stage(stage)):
            assert f"\n`{key}`\n: " in recipe, key
    for words in _leaves():
        assert f" {PROGRAM} {' '.join(words)}\n" in commands, words
    for metric in METRICS:
        if metric.stages != (OTHER,):
            assert metric.help, f"{metric.name} has no definition"
            assert f"| `{metric.name}` |" in metrics


def test_plain_text_of_the_reference_means_nothing_in_markdown() -> None:
    assert reference_pages.markdown("a*b <c> `d*e` x_y") == r"a\*b \<c\> `d*e` x\_y"
    assert reference_pages.markdown("the file of --out, not a--b") == "the file of `--out`, not a--b"
    assert reference_pages.markdown("(https://a.org/b_c).") == "(<https://a.org/b_c>)."
    assert reference_pages.markdown("arXiv:1707.06347, eq. 9") == (
        "[arXiv:1707.06347](https://arxiv.org/abs/1707.06347), eq. 9"
    )


def test_a_reference_page_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference_pages.main(["metrics"]) == 0
    assert "`objective/scores`" in capsys.readouterr().out


def _resolves(parts: list[str]) -> bool:
    """Return whether a dotted name is there; names that begin with no package, module or class of ours are left alone.

    Args:
        parts: from a package or a module on (``launch.run_requests.stop``, ``run_requests.stop``), or from a class on.
    """
    if parts[-1] in FILE_ENDINGS or ".".join(parts) in _other_names():
        return True
    starts = [path for package in PACKAGES for path in (*package.rglob(parts[0]), *package.rglob(f"{parts[0]}.py"))]
    if any(_holds(path, parts[1:]) for path in starts):
        return True
    if not starts:
        classes = _classes().get(parts[0])
        return classes is None or parts[1] in classes
    return False


def _holds(path: Path, parts: list[str]) -> bool:
    """Return whether a module or package holds a name; sources are parsed, not imported."""
    if not parts:
        return True
    if path.is_dir():
        children = (path / parts[0], path / f"{parts[0]}.py")
        if any(child.exists() and _holds(child, parts[1:]) for child in children):
            return True
        path = path / "__init__.py"
    if not path.is_file():
        return False
    names = _names(ast.parse(path.read_text(encoding="utf-8")).body)
    return parts[0] in names and (len(parts) == 1 or parts[1] in names[parts[0]])


def _names(body: list[ast.stmt]) -> dict[str, set[str]]:
    """Return the names that a module or class defines; of classes, with the names of their own."""
    names: dict[str, set[str]] = {}
    for node in body:
        match node:
            case ast.ClassDef():
                names[node.name] = set(_names(node.body))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names[node.name] = set()
            case ast.Assign():
                names |= {target.id: set() for target in node.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = set()
            case _:
                pass
    return names


@cache
def _other_names() -> set[str]:
    """Return dotted names that are none of Python: bindings, and recipe keys of a pipeline's stages."""
    return {name for scope in all_scopes(ConsoleApp.BINDINGS) for name in scope.ids} | {*fields_of(Stage.PIPELINE)}


@cache
def _classes() -> dict[str, set[str]]:
    """Return the classes of both packages with the names that they define; of one name, all of them together."""
    classes: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in package.rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    classes.setdefault(node.name, set()).update(_names(node.body))
    return classes


def _anchors(file: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and the site make them."""
    titles = _HEADING.findall(_FENCE.sub("", file.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _code(document: Path) -> Iterator[Code]:
    text = document.read_text(encoding="utf-8")
    for _, language, block in _FENCE.findall(text):
        yield from (Code(document, line.strip(), inline=False, language=language) for line in block.splitlines())
    text = _FENCE.sub("", text)
    for block in _INDENTED.findall(text):
        yield from (Code(document, line.strip(), inline=False) for line in block.splitlines())
    yield from (Code(document, span, inline=True) for span in _INLINE.findall(_INDENTED.sub("", text)))


def _problems(code: Code) -> list[str]:
    """List what is wrong with a command of ours; nothing of any other code."""
    if "…" in code.text or code.language in ("yaml", "python", "json"):
        return []
    words = _words(code)
    if words is None or (code.inline and _is_a_name(words)):
        return []
    try:
        arguments = parse(words)
    except UsageError as error:
        return [str(error)]
    except SystemExit:  # --help, --version
        return []
    stage = {"demo": "pipeline", "pipeline": "pipeline", "merge": "merge"}.get(words[0] if words else "")
    known = fields_of(Stage(getattr(arguments, "stage", None) or stage or "sft")).keys()
    if words[:2] == ["runs", "fork"]:  # of whatever stage the run is
        known = {key for each in STAGES for key in fields_of(Stage(each))}
    overrides = [word for word in getattr(arguments, "words", []) if "=" in word]
    keys = [word.partition("=")[0] for word in overrides]
    return [f"no recipe key `{key}`" for key in keys if key not in known and key.partition(".")[0] not in MAPPINGS]


def _words(code: Code) -> list[str] | None:
    """Return the arguments of a command; None: it is none of ours."""
    text = code.text.removeprefix("$ ")
    if text.startswith((f"{PROGRAM} ", f"nice {PROGRAM} ")) or text == PROGRAM:
        text = text.partition(PROGRAM)[2]
    elif not code.inline or text in NOT_COMMANDS or text.partition(" ")[0] not in _tree(PARSER):
        return None
    words = shlex.split(text, comments=True)
    ends = [index for index, word in enumerate(words) if word in ("|", ">", "<", "&&", "||", "&", "2>")]
    return words[: ends[0]] if ends else words


def _is_a_name(words: list[str]) -> bool:
    """Whether they only name a command, or a group of them, and options that it has."""
    parser: Any = PARSER
    for index, word in enumerate(words):
        if word not in _tree(parser):
            return index > 0 and all(option in parser.known for option in words[index:])
        parser = _tree(parser)[word]
    return True


def _leaves(parser: Any = None) -> Iterator[list[str]]:
    for name, child in _tree(parser or PARSER).items():
        below = list(_leaves(child))
        yield from ([name, *words] for words in below or [[]])


def _tree(parser: Any) -> dict[str, Any]:
    """Return the commands directly below one."""
    groups = [action for action in parser._actions if isinstance(action.choices, dict)]
    return {name: child for group in groups for name, child in group.choices.items()}


def _keys(recipe: dict[str, Any]) -> set[str]:
    """Keys of a recipe; of a section ``section.key``."""
    keys = {key for key, value in recipe.items() if key in MAPPINGS or not isinstance(value, dict)}
    sections = {name: part for name, part in recipe.items() if name not in keys}
    return keys | {f"{name}.{key}" for name, part in sections.items() for key in part}
