"""Options that several of `wordmill`'s commands take, read as params.yaml's are."""

from dataclasses import dataclass

from llm.compute_config import ComputeConfig
from llm.errors import WordmillError
from stages import params


@dataclass(frozen=True)
class Sections:
    """What `stages.params` checks: one section."""

    compute: ComputeConfig


def compute_config(device: str, precision: str, threads: int) -> ComputeConfig:
    """The options, checked as the section `compute` of params.yaml is. Raises WordmillError."""
    given = {"device": device, "precision": precision, "threads": threads}
    values = given | {"tf32": False, "compile": False, "deterministic": True}
    try:
        return params.build(Sections, {"compute": values}, "").compute
    except WordmillError as error:
        raise WordmillError(str(error).replace(": compute.", "--", 1)) from None
