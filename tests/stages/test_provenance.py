"""What a run's record says of its surroundings, against what Python itself says."""

import importlib.metadata

from stages import provenance


def test_packages_are_those_that_are_installed() -> None:
    found = dict(line.split("==") for line in provenance.packages().splitlines())
    for name in ("torch", "numpy", "ruamel.yaml", "wordmill"):
        assert found[name] == importlib.metadata.version(name)
    assert len(found) == len(
        {(each.metadata["Name"] or "").lower() for each in importlib.metadata.distributions()} - {""}
    )
    assert list(found) == sorted(found)
