"""What `pretrain.start_from` asks of a given model: the shape that the section `model` describes."""

from pathlib import Path

from llm.errors import WordmillError
from llm.model.config import ModelConfig
from llm.model.layouts import same_formula


def check_shape(place: Path, given: ModelConfig, wanted: ModelConfig) -> None:
    """Raises WordmillError where the model in `place` is not of the wanted shape."""
    # A run's own matter: how attention is computed, dropout, and the context where no weight depends on it.
    free = {"dropout"} | ({"attention"} if same_formula(wanted.attention) else set())
    free |= {"block_size"} if wanted.position != "learned" else set()
    free |= {"rope_theta"} if wanted.position != "rope" else set()
    other = [
        f"model.{name}={getattr(given, name)}"
        for name, value in vars(wanted).items()
        if name not in free and getattr(given, name) != value
    ]
    if other:
        raise WordmillError(
            f"pretrain.start_from: {place} is of another shape than the section model; set {' '.join(other)}"
        )
