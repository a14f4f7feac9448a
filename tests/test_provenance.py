import dataclasses
import enum
import os

from wsi_jax import provenance


def test_a_system_that_has_no_affinity_still_has_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert provenance.cores() == provenance.machine()["cores"] == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert provenance.cores() == 1


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Settings:
    size_px: int = 256
    colour: Colour = Colour.RED


def test_the_hash_changes_with_any_setting():
    hashes = {
        provenance.config_hash(Settings()),
        provenance.config_hash(Settings(size_px=224)),
        provenance.config_hash(Settings(colour=Colour.BLUE)),
        provenance.config_hash(Settings(), "weights"),
    }
    assert len(hashes) == 4
    assert provenance.config_hash(Settings()) in hashes
    # The hash names files on disk: it must not change from release to release.
    assert provenance.config_hash({"a": 1}) == "2696610e78752a9e"
