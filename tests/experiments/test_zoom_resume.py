"""Stages that are killed and started again end as if nothing had been."""

import jax
import numpy as np
import pytest
from processes import finish, kill_at, outputs
from zoom_run import FILE, STAGES, best, distilled, feature_files, logs, table


@pytest.fixture(scope="module")
def words(manifest, tmp_path_factory):
    shared = tmp_path_factory.mktemp("process_features")
    """A command line: all share features, unless `more` has other ones."""
    return lambda folder, *more: (
        "experiments.cohort",
        f"--config={FILE}",
        f"--config.data.manifest={manifest}",
        f"--config.features={shared}",
        f"--config.run_dir={folder}",
        "--config.train.save_every=5",
        "--config.heatmaps=0",
        *more,
    )


@pytest.fixture(scope="module")
def undisturbed(start, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(*words(folder)))
    return folder


def test_killed_in_every_stage_it_ends_as_if_nothing_had_been(
    start, words, undisturbed, tmp_path
):
    """In the first, while it distils, in the second and in the last."""
    folder = tmp_path / "run"
    for pattern in (
        "gather/state/5",
        "gather/distilled/*.h5",
        "guess/state/5",
        "rival/state/5",
    ):
        kill_at(start(*words(folder)), folder, pattern)
        assert not (folder / "model.json").exists()
    kill_at(start(*words(folder)), folder, "look/state/10")
    finish(start(*words(folder)))
    assert outputs(folder) == outputs(undisturbed)
    assert logs(folder) == logs(undisturbed)
    one, two = distilled(folder), distilled(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    for stage in STAGES:
        jax.tree.map(
            np.testing.assert_array_equal, best(folder, stage), best(undisturbed, stage)
        )


@pytest.mark.long
def test_killed_between_the_resolutions_it_encodes_only_what_is_missing(
    start, words, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    command = words(folder, "--config.features=", "--config.encode_batch=1")
    kill_at(start(*command), folder, "features/*_children/*/*.h5")
    low, high = feature_files(folder / "features")
    assert len(low) == 20
    assert len(high) < 20
    times = {p: p.stat().st_mtime_ns for p in [*low.values(), *high.values()]}
    finish(start(*command))
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(feature_files(folder / "features")[1]) == 20
    slides = lambda run: [line["slide_id"] for line in table(run / "predictions.csv")]
    assert slides(folder) == slides(undisturbed)
