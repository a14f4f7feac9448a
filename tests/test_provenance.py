import os

from wsi_jax import provenance


def test_a_system_that_has_no_affinity_still_has_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert provenance.cores() == provenance.machine()["cores"] == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert provenance.cores() == 1
