"""What all tests share: where the optional data lies, one thread, a tiny model."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before torch: threads that spin while they wait take the other test process's time, two fifths of it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dvc  # noqa: F401  here: DVC writes to the stderr of its import for good, and that of a test is closed
import pytest
import torch

from benchmarks.shapes import llama
from llm.compute import Compute, ComputeConfig
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from stages import lineage, params

ROOT = Path(__file__).parents[1]
STAGES = [stage.name for stage in lineage.declared(ROOT / "dvc.yaml")]
SHARED_DATA = Path(os.environ.get("WORDMILL_SHARED_DATA", ROOT.parent / "shared" / "data"))


# The files that take longest, longest first. Processes take files in this order, so that all end at about one time.
SLOWEST_FILES = (
    "test_pipeline.py",
    "test_presets_run.py",
    "test_deployment.py",
    "test_bad_input.py",
    "test_stage.py",
    "test_stores.py",
    "test_parallel.py",
    "test_tracking.py",
    "test_readers.py",
    "test_dvc.py",
    "test_flash.py",
    "test_delivery.py",
)
TINY = llama(n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48, block_size=32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def shared_data() -> Path:
    """Folder of real data beside the checkout; the test is skipped on machines without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real data in {SHARED_DATA}, which this machine lacks")
    return SHARED_DATA


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow's database, one for the session, since making its tables takes seconds."""
    from stages.store import client  # only here: most tests do without its second of import

    folder = tmp_path_factory.mktemp("mlflow")
    client(f"sqlite:///{folder}/mlflow.db")
    shutil.copy(folder / "mlflow.db", folder / "empty.db")  # for tests that need one of their own
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests wait neither for what else trains on this machine nor for what a module before them trained in-process."""
    os.environ["WORDMILL_LOCKS"] = str(tmp_path_factory.mktemp("locks"))


@pytest.fixture
def compute() -> Compute:
    return Compute(ComputeConfig(device="cpu", precision="fp32", tf32=False, compile=False, threads=1))


@pytest.fixture
def tiny_config() -> ModelConfig:
    return TINY


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Transformer:
    """A model whose weights are large enough that its predictions differ from token to token."""
    model = Transformer(tiny_config, vocab_size=64)
    model.initialise(seed=5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 2
    return model.eval()


class Told:
    """Stands for a stage's surroundings: a new scratch folder, and figures go nowhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scratch = Path("runs") / name
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self.kept_steps: set[int] = set()

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        assert all(isinstance(value, float | int) for value in values.values())

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()

    def dataset(self, name: str, source: str, digest: str, counts: dict[str, int]) -> None:
        assert counts

    def model(self, folder: Path, name: str, tags: dict[str, str]) -> None:
        assert folder.is_dir()

    def tags(self, values: dict[str, str]) -> None:
        assert values

    def text(self, path: str, text: str) -> None:
        assert path

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        yield lambda: False


@pytest.fixture
def run_stages() -> Callable[..., None]:
    """Runs the stages named, or all, in this process and folder, by its params.yaml."""

    def run(*names: str) -> None:
        for name in names or STAGES:
            module = importlib.import_module(f"stages.{name}")
            module.run(params.load(module.Params), Told(name))

    return run
