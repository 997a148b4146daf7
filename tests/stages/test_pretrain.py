"""What the stage says of its batches."""

from pathlib import Path

import numpy as np

from llm.batches import Batches
from llm.shards import ShardSet
from stages.pretrain import repeats


class Stories(ShardSet):
    """A hundred documents of 200 tokens, of which only the lengths are read."""

    def __init__(self) -> None:
        self.folder = Path("stories")
        self.tokens = 20_000

    @property
    def documents(self) -> np.ndarray:  # type: ignore[override]
        return np.arange(100) * 200


def test_the_run_says_what_share_of_its_targets_are_repeats() -> None:
    said = {packing: repeats(Batches(Stories(), 250, 4, 1, packing), packing) for packing in ("documents", "windows")}
    assert said["documents"] == (
        "20.0% of an epoch's targets are repeats that fill sequences of 250 tokens (packing: documents); "
        "pretrain.packing: documents_once repeats none"
    )
    assert said["windows"].startswith("0.0% of an epoch's targets are repeats")
    assert "documents_once" not in said["windows"]
