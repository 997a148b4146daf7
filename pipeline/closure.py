"""The code that a stage really uses, as its dependencies in dvc.yaml.

A stage must rerun when code that it runs has changed, and only then. What it runs is what its script imports, directly
or not: an `ast` walk over the import statements from stages/<name>.py through the project's own packages finds the
files, each package's __init__.py included, imports for type checkers only (`if TYPE_CHECKING:`) left out.

    python -m pipeline.closure            prints what differs from dvc.yaml, and ends with status 1 if anything does
    python -m pipeline.closure --write    brings dvc.yaml up to date; comments and other dependencies stay as they are
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from pipeline.files import replace

FLOORS = ("llm", "stages", "pipeline")  # ground floor first: imports only ever go down
PIPELINE = Path("dvc.yaml")


def closure(script: Path, root: Path = Path()) -> list[str]:
    """The project's files that running `script` imports, itself included, sorted; paths are relative to `root`."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imports(path, root)
    return sorted(path.as_posix() for path in found)


@cache
def imports(path: Path, root: Path = Path()) -> tuple[Path, ...]:
    """The project's files that the import statements of one file name, the packages' own files included."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"), str(path))
    package = [] if path.name == "__init__.py" and len(path.parts) == 1 else list(path.parts[:-1])
    names: list[list[str]] = [package] if package else []
    for node in _run_at_run_time(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from a import b`: b is a module of a, or a name in it
            names += [base, *([*base, alias.name] for alias in node.names)]
    return tuple(dict.fromkeys(file for name in names for file in _files(name, root)))


def declared(stages: CommentedMap, name: str) -> list[str]:
    """The code dependencies of a stage in dvc.yaml."""
    return [dep for dep in stages[name].get("deps", []) if is_code(dep)]


def is_code(path: str) -> bool:
    return path.endswith(".py") and path.partition("/")[0] in FLOORS


def renewed(text: str, root: Path = Path()) -> str:
    """dvc.yaml's text with every stage's code dependencies set to its closure. They follow the other ones."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=2, offset=0)
    content = yaml.load(text)
    for name, stage in content["stages"].items():
        code = closure(Path(f"stages/{name}.py"), root)
        others = [dep for dep in stage.get("deps", []) if not is_code(dep)]
        if list(stage.get("deps", [])) == [*others, *code]:
            continue
        deps = CommentedSeq([*others, *code])
        deps.fa.set_block_style()
        if "deps" in stage:
            stage["deps"] = deps
        else:
            stage.insert(list(stage).index("cmd") + 1, "deps", deps)
    out = StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def differences(text: str, root: Path = Path()) -> list[str]:
    """A line for each code dependency that dvc.yaml lacks or has too many."""
    stages = YAML(typ="safe", pure=True).load(text)["stages"]
    lines = []
    for name in stages:
        has, needs = set(declared(stages, name)), set(closure(Path(f"stages/{name}.py"), root))
        lines += [f"{name}: {path} is imported and no dependency" for path in sorted(needs - has)]
        lines += [f"{name}: {path} is a dependency and not imported" for path in sorted(has - needs)]
    return lines


def upward(root: Path = Path()) -> list[str]:
    """A line for each import that goes up a floor."""
    lines = []
    for number, floor in enumerate(FLOORS):
        for path in sorted((root / floor).rglob("*.py")):
            relative = path.relative_to(root)
            for target in imports(relative, root):
                if target.parts[0] in FLOORS[number + 1 :]:
                    lines.append(f"{relative} imports {target}")
    return lines


def _run_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for alternative in child.orelse:
                yield alternative
                yield from _run_at_run_time(alternative)
        else:
            yield child
            yield from _run_at_run_time(child)


def _files(name: list[str], root: Path) -> Iterator[Path]:
    """The project's files that importing a dotted name runs."""
    if not name or name[0] not in FLOORS:
        return
    for length in range(1, len(name) + 1):
        path = Path(*name[:length])
        if (root / path / "__init__.py").is_file():
            yield path / "__init__.py"
        elif (root / path.with_suffix(".py")).is_file():
            yield path.with_suffix(".py")


def main() -> int:
    text = PIPELINE.read_text(encoding="utf-8")
    if "--write" in sys.argv[1:]:
        new = renewed(text)
        if new != text:
            replace(PIPELINE, new)
        return 0
    lines = differences(text)
    print(
        "\n".join([*lines, "`python -m pipeline.closure --write` updates dvc.yaml"] if lines else ["dvc.yaml is valid"])
    )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
