"""Circles between the files of console/ and engine/, which `make check` refuses.

    python scripts/import_graph.py          # every circle with the imports that close it; 1 where there is one
    python scripts/import_graph.py --tiny   # a graph of three made-up files instead

Every import counts, also one inside a function or under ``TYPE_CHECKING``: a circle there still means that neither file
can be read, moved or tested without the other. import-linter guards the layers (pyproject.toml); it cannot say this.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "console", ROOT / "engine")
Graph = Mapping[str, set[str]]
"""Imported modules by module; only those that are in the graph."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the circles; 1 where there is one."""
    parser = argparse.ArgumentParser(description="Find circles of imports between files.")
    parser.add_argument("--tiny", action="store_true", help="a graph of three made-up files, which has one circle")
    options = parser.parse_args(arguments)
    graph: Graph = {"a": {"b"}, "b": {"a", "c"}, "c": set()} if options.tiny else graph_of(SOURCES)
    circles = circles_of(graph)
    sys.stdout.write(report(graph, circles))
    return int(bool(circles) and not options.tiny)


def graph_of(sources: Sequence[Path]) -> Graph:
    """Read every file below the source folders.

    Raises:
        SyntaxError: a file is not Python.
    """
    files = {_name(file, source): file for source in sources for file in sorted(source.rglob("*.py"))}
    return {name: {other for other in _imported(name, file, files) if other != name} for name, file in files.items()}


def _name(file: Path, source: Path) -> str:
    return ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def _imported(name: str, file: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules that a file imports; ``from package import module`` means the module."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from [one for one in (f"{base}.{alias.name}", base) if one in files][:1]


def circles_of(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            start = stack.index(module)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                circles.append(sorted(component))

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(graph)))
    for module in sorted(graph):
        if module not in index:
            visit(module)
    return sorted(circles, key=lambda circle: (-len(circle), circle))


def report(graph: Graph, circles: Sequence[Sequence[str]]) -> str:
    """Return the circles and the imports inside each, for a person."""
    arrows = sum(map(len, graph.values()))
    if not circles:
        return f"import graph: {len(graph)} files, {arrows} imports, no circle\n"
    lines = [f"import graph: {len(circles)} circle{'s' * (len(circles) > 1)} between files:"]
    for circle in circles:
        lines.append(f"- {len(circle)} files that import each other; take one of these imports away:")
        lines += [f"    {name} imports {other}" for name in circle for other in sorted(graph[name] & set(circle))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
