"""dvc.yaml says exactly what each stage uses; imports go down the floors."""

import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import closure

REPO = Path(__file__).parents[2]
TEXT = (REPO / "dvc.yaml").read_text()
STAGES = YAML(typ="safe", pure=True).load(TEXT)["stages"]


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_what_the_script_imports(name: str) -> None:
    declared = closure.declared(STAGES, name)
    found = closure.closure(Path(f"stages/{name}.py"), REPO)
    assert declared == found, "`python -m pipeline.closure --write` updates dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_the_place_of_the_shell(name: str) -> None:
    assert STAGES[name]["cmd"].split() == ["exec", "python", "-m", f"stages.{name}"]


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_the_script_reads(name: str) -> None:
    sections = [field.name for field in fields(import_module(f"stages.{name}").Params)]
    assert sorted(STAGES[name].get("params", [])) == sorted(sections)


def test_the_closure_is_what_python_really_imports() -> None:
    """A stage with its imports run in a fresh interpreter: the modules loaded from this project are in the closure."""
    program = (
        "import sys, stages.preferences\n"
        "print(*sorted(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = {
        Path(line).relative_to(REPO).as_posix() for line in done.stdout.splitlines() if line.startswith(f"{REPO}/")
    }
    loaded = {path for path in loaded if closure.is_code(path)}
    assert loaded
    assert loaded <= set(closure.closure(Path("stages/preferences.py"), REPO))


def test_imports_only_go_down() -> None:
    assert closure.upward(REPO) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project of a few files with every kind of import."""
    files = {
        "llm/__init__.py": "",
        "llm/a.py": "import json\nfrom llm.deep import b\nfrom llm.names import NAME\n",
        "llm/names.py": "NAME = 1\n",
        "llm/deep/__init__.py": "",
        "llm/deep/b.py": "from . import c\nfrom ..late import x\n",
        "llm/deep/c.py": "",
        "llm/late.py": "def f():\n    import llm.inner as i\nx = 1\n",
        "llm/inner.py": "",
        "llm/typed.py": "",
        "llm/other.py": "",
        "stages/__init__.py": "",
        "stages/one.py": (
            "from typing import TYPE_CHECKING\nimport llm.a\n"
            "if TYPE_CHECKING:\n    import llm.typed\nelse:\n    import llm.names\n"
        ),
        "pipeline/__init__.py": "",
        "pipeline/top.py": "import stages.one\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_kind_of_import(small: Path) -> None:
    expected = "a names late inner deep/__init__ deep/b deep/c __init__"
    found = closure.closure(Path("stages/one.py"), small)
    assert found == sorted([*(f"llm/{name}.py" for name in expected.split()), "stages/__init__.py", "stages/one.py"])


def test_an_import_that_goes_up_is_found(small: Path) -> None:
    assert closure.upward(small) == []
    (small / "llm/other.py").write_text("from stages import one\n")
    closure.imports.cache_clear()
    assert closure.upward(small) == [
        "llm/other.py imports stages/__init__.py",
        "llm/other.py imports stages/one.py",
    ]


def test_renewing_keeps_everything_else(small: Path) -> None:
    text = """# Top.
stages:
  one:
    desc: first # why
    cmd: python -m stages.one
    deps:
    - data/in # the data
    - llm/other.py
    outs: [data/out]
"""
    new = closure.renewed(text, small)
    deps = YAML(typ="safe", pure=True).load(new)["stages"]["one"]["deps"]
    assert deps == ["data/in", *closure.closure(Path("stages/one.py"), small)]
    assert "# Top." in new
    assert "desc: first # why" in new
    assert "outs: [data/out]" in new
    assert "- llm/other.py" not in new
    assert closure.renewed(new, small) == new
    assert closure.differences(new, small) == []
    assert closure.differences(text, small)[-1] == "one: llm/other.py is a dependency and not imported"
