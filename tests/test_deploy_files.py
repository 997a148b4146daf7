"""The files in deploy/: what a service or a container may do, and that the image's packages are those of the tests."""

import re
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", ["agent", "server"])
def test_a_service_can_write_to_little_and_gain_no_rights(name: str) -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / f"wordmill-{name}.service", encoding="utf-8")
    service = unit["Service"]
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "read-only", "PrivateTmp": "yes"}
    assert {key: service[key] for key in wanted} == wanted
    assert "MemoryMax" in service


def test_the_image_runs_as_a_user_and_installs_by_hash() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    instructions = re.sub(r"\\\n", " ", text)
    assert re.search(r"^USER (?!root\b|0\b)\w+$", instructions, re.M)
    assert "--network host" not in text
    for install in re.findall(r"pip install .*", instructions):
        assert "--require-hashes" in install or "--no-deps" in install


def test_the_image_has_the_versions_that_the_tests_run_with() -> None:
    blocks = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", lock := locked(), re.M)
    found = {normal(name.partition("[")[0]): version for name, version, _ in blocks}
    assert len(found) == lock.count("==") > 100  # every package has its hashes
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    assert {name: version for name, version in found.items() if pinned.get(name, version) != version} == {}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    missing = {normal(re.split(r"[\[<>=;! ]", text)[0]) for text in wanted} - set(found)
    assert not missing


def locked() -> str:
    lines = (DEPLOY / "requirements.lock").read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))
