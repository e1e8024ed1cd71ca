"""Check of a reward function that a recipe names, by its source: nothing of it is run before the stage."""

import ast
import difflib
import importlib.machinery
import importlib.util
import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ..contract.atomic_files import existing
from ..contract.errors import UsageError
from ..contract.recipe import FUNCTION, PROMPT_COLUMNS, REWARD_ARGUMENTS
from ..contract.reward_parameters import Parameters, unused_option
from ..contract.user_files import read_bytes

KEY = "reward_funcs"
_MOST_SOURCE = 4 << 20  # bytes
_TEXTS = ("completions", "responses")


def find_function(reference: str, directory: str | None, given: Collection[str] | None) -> str | None:
    """Find the directory to import a function from.

    Looked for in ``directory``; without one in the working directory, in PYTHONPATH, and in what is installed.

    Args:
        reference: ``package.module:function``.
        directory: the only place to look, or None.
        given: names of columns and of ``reward_kwargs``; None: they are not all known.

    Returns:
        An absolute directory; None: it is installed.

    Raises:
        UsageError: there is no such module or function, its source is no Python, or it cannot be called.
    """
    named = FUNCTION.fullmatch(reference)
    assert named, reference  # the recipe checks it
    what, module, name = f"`{KEY}: {reference}`", named["module"], named["name"]
    roots = [Path(directory)] if directory else [*_given(), *_installed(module.partition(".")[0])]
    for root in roots:
        if file := _file(root, module):
            if found := _definition(what, file, name):
                _check_arguments(f"{what}: `{found[1].name}` in {found[0]}", found[1].args, given)
            absolute = root.resolve()
            return None if absolute in _installed_places() else str(absolute)
    where = directory or f"{Path.cwd()}, in PYTHONPATH or among the installed packages"
    raise UsageError(
        f"{what}: there is no module `{module}` in {where}; start from the directory that holds it, "
        "or name that with `reward_func_paths`."
    )


def imported_file(reference: str, directory: str | None) -> Path:
    """Return the file that a stage would import a function's module from.

    Args:
        reference: ``package.module:function``.
        directory: as :func:`find_function` returned it.

    Raises:
        UsageError: there is none.
    """
    named = FUNCTION.fullmatch(reference)
    if named is None:  # of a recipe that was changed by hand
        raise UsageError(f"`{KEY}: {reference}` names no function; write `package.module:function`.")
    module = named["module"]
    if directory:
        roots = [Path(directory)]
    else:  # a stage works in its run's directory, and looks into PYTHONPATH first
        parts = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        roots = [*map(Path, parts), *_installed(module.partition(".")[0])]
    if file := next(filter(None, (_file(root, module) for root in roots)), None):
        return file.resolve()
    raise UsageError(f"`{KEY}: {reference}`: its module `{module}` is no longer in {directory or 'what is installed'}.")


def parameters_of(reference: str, directory: str | None) -> Parameters | None:
    """Return the parameters of a function; None where its source does not tell, as behind a decorator.

    Args:
        reference: ``package.module:function``.
        directory: as :func:`find_function` returned it.

    Raises:
        UsageError: its module or its source cannot be had.
    """
    named = FUNCTION.fullmatch(reference)
    found = _definition(f"`{KEY}: {reference}`", imported_file(reference, directory), named["name"]) if named else None
    if found is None:
        return None
    signature = found[1].args
    names = frozenset(one.arg for one in (*signature.args, *signature.kwonlyargs))
    return Parameters(names, signature.kwarg is not None)


def check_options(functions: Sequence[Parameters | None], options: Iterable[str]) -> None:
    """Check that every one of ``reward_kwargs`` is for some function, as far as their parameters are known.

    Raises:
        UsageError: no function has such a parameter.
    """
    if message := unused_option(functions, options):
        raise UsageError(message)


def _given() -> list[Path]:
    """Return the working directory and the entries of PYTHONPATH."""
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [Path.cwd(), *(Path(part) for part in parts if existing(part))]


def _installed(package: str) -> list[Path]:
    """Return directories that hold an importable top-level name; looking for one runs nothing of it."""
    importlib.invalidate_caches()  # a console asks again after a person has written the module
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    inside = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else [])]
    return [(Path(one).parents[1] if Path(one).name == "__init__.py" else Path(one).parent) for one in inside]


def _installed_places() -> set[Path]:
    """Return the directories of installed packages and of this one, where every process of this interpreter looks."""
    return {Path(__file__).resolve().parents[2]} | {
        Path(sysconfig.get_path(one)).resolve() for one in ("purelib", "platlib", "stdlib", "platstdlib")
    }


def _file(root: Path, module: str) -> Path | None:
    """Return the file of a module under a directory; packages with and without ``__init__.py``."""
    *packages, last = module.split(".")
    folder = root.joinpath(*packages)
    names = [f"{last}/__init__.py", *(f"{last}{suffix}" for suffix in importlib.machinery.all_suffixes())]
    return next((file for name in names if existing(str(file := folder / name)) and file.is_file()), None)


def _definition(what: str, file: Path, name: str) -> tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef] | None:
    """Return a plain function's definition and its file; None where the source does not tell.

    Raises:
        UsageError: the source cannot be read, is no Python, or binds no such name.
    """
    if file.suffix != ".py":  # compiled: seen when the stage imports it
        return None
    try:
        tree = ast.parse(read_bytes(file, _MOST_SOURCE))
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UsageError(f"{what}: {file}{line} is not valid Python: {getattr(error, 'msg', error)}.") from None
    except OSError as error:
        raise UsageError(f"{what}: {file} cannot be read: {error.strerror}.") from None
    bound = dict(_bound(tree.body))
    if name not in bound and not bound.keys() & {"*", "__getattr__"}:
        near = difflib.get_close_matches(name, bound, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise UsageError(f"{what}: {file} defines no `{name}`.{hint}")
    node = bound.get(name)
    if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and file.name == "__init__.py":
        own = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        beside = _file(file.parent, node.module)
        return _definition(what, beside, own) if beside else None
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
        return file, node
    return None


def _check_arguments(what: str, signature: ast.arguments, given: Collection[str] | None) -> None:
    """Refuse a function that takes no responses, or needs something that it will not get."""
    plain = [*signature.posonlyargs, *signature.args]
    needed = [one.arg for one in plain[: len(plain) - len(signature.defaults)]]
    needed += [one.arg for one, value in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if value is None]
    names = {one.arg for one in (*signature.args, *signature.kwonlyargs)}
    if signature.kwarg is None and not names & set(_TEXTS):
        raise UsageError(f"{what} takes neither `completions` nor `responses`; it is called with keywords.")
    if signature.posonlyargs and (only := {one.arg for one in signature.posonlyargs} & set(needed)):
        raise UsageError(f"{what} takes `{min(only)}` by position only, and is called with keywords.")
    always = {*REWARD_ARGUMENTS, *PROMPT_COLUMNS}
    lacking = [] if given is None else [one for one in needed if one not in always and one not in given]
    if lacking:
        there = ", ".join(f"`{name}`" for name in sorted(given or ())) or "nothing"
        raise UsageError(
            f"{what} needs `{lacking[0]}`, which is neither a column of the data nor in `reward_kwargs` ({there})."
        )


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield names that a module's own statements bind, and where; ``*`` for a star import."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, statement
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield alias.asname or alias.name.partition(".")[0], statement
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                for node in ast.walk(statement):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        yield node.id, statement
            case _:
                for part in ("body", "orelse", "finalbody"):
                    yield from _bound(getattr(statement, part, []))
                for handler in getattr(statement, "handlers", []):
                    yield from _bound(handler.body)
