"""The state of stopped and finished runs: what is found again, what stays, what is said of it, and what goes."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.errors import WordmillError
from stages import scratch as module
from stages.scratch import finish, scratch, states

A, B, C, D = (letter * 16 for letter in "abcd")
PARAMS = {"pretrain.steps": 100, "pretrain.log_every": 10}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "checkout/runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout")
    return Path("runs/pretrain")


@pytest.fixture(params=["own", "shared"])
def folder(request: pytest.FixtureRequest, checkout: Path, tmp_path: Path) -> Path:
    """`runs/pretrain` of a checkout of its own, or a link to a folder that several share."""
    if request.param == "shared":
        (tmp_path / "shared/pretrain").mkdir(parents=True)
        checkout.symlink_to(tmp_path / "shared/pretrain")
    return checkout


def left(fingerprint: str, step: int = 40, stage: str = "pretrain", **changes: int) -> Path:
    """A run that is stopped in the middle."""
    params = PARAMS | {f"{stage}.{name}": value for name, value in changes.items()}

    def killed() -> None:
        with scratch(stage, fingerprint, params) as folder:
            checkpoint(folder, step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    return module.RUNS / stage / fingerprint


def checkpoint(folder: Path, step: int) -> None:
    (folder / f"step-{step:08d}").mkdir()
    (folder / f"step-{step:08d}/tensors.safetensors").write_bytes(bytes(1000))


def finished(fingerprint: str, recorded: Callable[[], str] = lambda: "other", kept: tuple[int, ...] = ()) -> None:
    with scratch("pretrain", fingerprint, PARAMS, recorded=recorded) as folder:
        for step in (*kept, 60, 100):
            checkpoint(folder, step)
        (folder / "job.json").touch()
        finish("pretrain", folder, kept, [], recorded)


def aged(folder: Path, days: float) -> None:
    then = time.time() - days * module.DAY
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def names(stage: str = "pretrain") -> list[str]:
    return sorted(state.folder.name for state in states(stage))


def test_a_change_leaves_the_state_of_a_stopped_run_and_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = left(A, step=1540, steps=100_000, log_every=100)
    capsys.readouterr()
    with scratch("pretrain", B, PARAMS | {"pretrain.steps": 100_000, "pretrain.log_every": 50}):
        assert (place / "step-00001540/tensors.safetensors").exists()
    told = capsys.readouterr().out
    assert f"{place} (stopped, step 1,540 of 100,000, 0.0 MB): pretrain.log_every 100 -> 50\n" in told
    assert f"set pretrain.continue_from: {place}; `wordmill runs` lists all\n" in told
    with scratch("pretrain", A, PARAMS) as again:
        assert (again / "step-00001540").is_dir()


def test_states_go_by_the_stated_limits_and_with_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for fingerprint in (A, B, C):
        left(fingerprint)
    aged(folder / A, module.KEPT_DAYS + 1)
    aged(folder / B, 2)
    capsys.readouterr()
    with scratch("pretrain", D, PARAMS):
        assert names() == [B, C, D]
    assert f"removed runs/pretrain/{A} (stopped, step 40 of 100, 0.0 MB): over the limit" in capsys.readouterr().out
    monkeypatch.setattr(module, "KEPT_BYTES", 1500)
    with scratch("pretrain", D, PARAMS):
        assert names() == [C, D]


def test_what_a_param_names_is_never_removed(folder: Path) -> None:
    left(A)
    aged(folder / A, module.KEPT_DAYS + 1)
    for named in (folder / A, folder / A / "step-00000040"):
        with scratch("pretrain", B, PARAMS, [named]):
            assert (folder / A / "step-00000040").is_dir()


def test_empty_state_goes_silently(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def killed() -> None:
        with scratch("pretrain", A, PARAMS):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with scratch("pretrain", B, PARAMS):
        assert names() == [B]
    assert capsys.readouterr().out == ""


def test_state_that_another_checkout_uses_is_left_alone(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "shared/pretrain").mkdir(parents=True)
    checkout.symlink_to(tmp_path / "shared/pretrain")
    with scratch("pretrain", A, PARAMS) as own:
        checkpoint(own, 1)
        aged(own, module.KEPT_DAYS + 1)
        with scratch("pretrain", B, PARAMS):
            assert own.exists()
    with scratch("pretrain", B, PARAMS):
        assert not own.exists()


def test_a_finished_run_leaves_its_last_checkpoint_until_the_next_has_finished(folder: Path) -> None:
    finished(A, kept=(80,))
    assert sorted(path.name for path in (folder / A).iterdir()) == [
        "about.json",
        "finished.json",
        "step-00000080",
        "step-00000100",
    ]
    left(B)
    finished(C)
    assert names() == [B, C]


def test_a_finished_run_is_taken_up_again_only_until_dvc_has_recorded_it(folder: Path) -> None:
    finished(A, lambda: "other")
    with scratch("pretrain", A, PARAMS, recorded=lambda: "other") as own:  # killed before DVC recorded it
        assert (own / "step-00000100").is_dir()
        finish("pretrain", own, (), [], lambda: "other")
    with scratch("pretrain", A, PARAMS, recorded=lambda: "") as own:  # recorded, and asked for anew: `dvc repro -f`
        assert not (own / "step-00000100").exists()
        checkpoint(own, 100)
        finish("pretrain", own, (), [], lambda: "")
    with scratch("pretrain", A, PARAMS, recorded=lambda: "") as own:
        assert not (own / "step-00000100").exists()


FOREIGN: dict[str, Callable[[Path], object]] = {
    "file": lambda path: (path / ".DS_Store").write_text("x"),
    "folder": lambda path: (path / "notes").mkdir(),
    "link to nothing": lambda path: (path / "gone").symlink_to("nowhere"),
    "link to a folder": lambda path: (path / C).symlink_to(path.parent.parent),
    "file with the name of a state": lambda path: (path / C).write_text("x"),
    "fifo": lambda path: os.mkfifo(path / "pipe"),
    "loop": lambda path: (path / "loop").symlink_to("loop"),
    "broken about": lambda path: [(path / C).mkdir(), (path / C / "about.json").write_text("[1")],
    "about of another kind": lambda path: [(path / C).mkdir(), (path / C / "about.json").write_text('{"params": 1}')],
    "not UTF-8": lambda path: (path / os.fsdecode(b"\xff")).write_text("x"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("inside", [False, True])
def test_foreign_files_hurt_nobody(folder: Path, kind: str, inside: bool) -> None:
    """Beside the states, and in a state beside its checkpoints."""
    left(A)
    FOREIGN[kind](folder / A if inside else folder)
    with scratch("pretrain", B, PARAMS) as own:
        checkpoint(own, 5)
        finish("pretrain", own, (), [], lambda: "other")
    with scratch("pretrain", A, PARAMS) as own:
        assert (own / "step-00000040").is_dir()
        finish("pretrain", own, (), [], lambda: "other")
    assert A in names()


def test_an_unreadable_state_hurts_nobody(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(A)
    iterdir = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path.name == A:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refused)  # a superuser, as tests often run, may read all
    with scratch("pretrain", B, PARAMS):
        assert names() == [B]


@pytest.mark.parametrize("place", ["runs/pretrain", f"runs/pretrain/{A}"])
def test_a_file_in_the_place_of_a_folder_is_one_line(checkout: Path, place: str) -> None:
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).touch()
    with pytest.raises(WordmillError, match=f"^{place}: not a folder, .*; move it away$"), scratch("pretrain", A, {}):
        pass


def test_state_of_an_older_version_is_listed_too(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left(A)
    (checkout / A / "about.json").unlink()
    with scratch("pretrain", B, PARAMS):
        pass
    assert f"{checkout / A} (stopped, step 40, 0.0 MB): written by an older version\n" in capsys.readouterr().out


def test_about_says_the_params(checkout: Path) -> None:
    left(A, log_every=7)
    assert json.loads((checkout / A / "about.json").read_text())["params"]["pretrain.log_every"] == 7
