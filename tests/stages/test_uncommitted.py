"""What goes to MLflow of a checkout that has changed: code, and nothing that may be secret."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from stages.uncommitted import changed_since, is_secret, uncommitted

SECRET = "open-sesame-4711"
SECRETS = (
    ".env",
    ".env.local",
    "wordmill.env",
    "env",
    "pipeline/.env",
    "stages/.secrets/key.py",
    "presets/secrets.yaml",
    "llm/credentials.py",
    "stages/aws_access_key.yaml",
    "id_rsa",
    "id_ed25519.pub",
    "server.pem",
    "tls.key",
    "kaggle.json",
    ".netrc",
    "hf_token",
    "token.txt",
    "my-passwords.txt",
    "service-account.json",
    ".aws/config",
    ".dvc/config.local",
)
CODE = (
    "llm/new.py",
    "stages/templates/new.html",
    "presets/mine.yaml",
    "data.txt",
    "inputs/more/of.txt",
    "reports/.gitignore",
)
OTHERS = ("notes.txt", "notebook.ipynb", "docs/new.md", "llm/weights.bin", "data/mine.jsonl")


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with every kind of change."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    write("dvc.yaml", "stages: {a: {cmd: x, deps: [data.txt, inputs, llm/old.py]}}\n")
    for name in ("llm/old.py", "llm/gone.py", ".dvc/config", "deploy/wordmill.env", "README.md"):
        write(name, "as committed\n")
    git("add", "-f", ".")
    git("commit", "-qm", "one")
    write("llm/old.py", "x = 1\n")
    write("README.md", "edited\n")
    Path("llm/gone.py").unlink()
    for name in (".dvc/config", "deploy/wordmill.env"):  # git knows them; what was put in since is secret
        write(name, f"password = {SECRET}\n")
    for name in SECRETS:
        write(name, f"password = {SECRET}\n")
    for name in (*CODE, *OTHERS):
        write(name, f"# {name}\n")
    write("inputs/big.bin", "x" * 1_000_001)
    write("staged.txt", f"password = {SECRET}\n")  # `git add` does not make it code
    git("add", "staged.txt", "llm/new.py", ".env")


def test_code_is_in_the_patch_and_no_secret_is(changed: None, tmp_path: Path) -> None:
    patch, left_out = uncommitted()
    assert SECRET.encode() not in patch
    hashes = {
        name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in (*OTHERS, "inputs/big.bin", "staged.txt")
    }
    assert left_out == dict.fromkeys((*SECRETS, ".dvc/config", "deploy/wordmill.env"), "") | hashes

    git("worktree", "add", "-q", "--detach", str(tmp_path / "apart"), "HEAD")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path / "apart", input=patch, check=True)
    for name in (*CODE, "llm/old.py", "README.md"):
        assert (tmp_path / "apart" / name).read_bytes() == Path(name).read_bytes()
    assert not (tmp_path / "apart/llm/gone.py").exists()
    assert not (tmp_path / "apart/notes.txt").exists()


def test_what_was_left_out_is_compared_later(changed: None) -> None:
    _, left_out = uncommitted()
    assert list(changed_since(left_out)) == []
    Path("notes.txt").write_text("later")
    Path("docs/new.md").unlink()
    assert list(changed_since(left_out)) == [
        "docs/new.md: was not in git, and is not here",
        "notes.txt: was not in git, and is here in another version",
    ]


def test_the_projects_own_files_are_no_secrets() -> None:
    names = git("-C", str(Path(__file__).parents[2]), "ls-files", "llm", "stages", "pipeline", "presets").split()
    assert len(names) > 100
    assert [name for name in names if is_secret(name)] == []
