"""Forecasts of many devices and of a million slides, against what is known of them."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import chips, record, scaling, scaling_efficiency
from benchmarks.program_shapes import Program, placed
from benchmarks.scaling_efficiency import Slides
from benchmarks.shard_simulation import ATTEMPTS, HOUR_S, Faults, Rates, simulate

PACKINGS = ("as drawn", "by size", "like sizes")
RATES = Rates(start=10, row=0.1, scan=1, tissue=2, slide=5, tile=0.5)
COLUMNS = ("method", "devices", "processes", "step_s", "efficiency", "collective_bytes")


def slides_of(*areas):
    return Slides(np.array(areas, float), np.full((len(areas), 2), 1.0))


def test_tissue_is_that_of_the_cohort_and_its_spread_leaves_the_mean():
    means = {}
    for spread in (0.8, 1.0, 1.25):
        slides = scaling_efficiency.draw(np.random.default_rng(0), 20_000, spread)
        means[spread] = slides.area.mean()
        deviation = slides.area.std() / means[spread]
        assert deviation == pytest.approx(spread, abs=0.25)
    assert means[0.8] == pytest.approx(means[1.0]) == pytest.approx(means[1.25])
    assert means[1.0] / scaling_efficiency.TILE_MM**2 == pytest.approx(615, rel=0.02)
    tall = (slides.frame == scaling_efficiency.TALL_MM).all(1).mean()
    assert tall == pytest.approx(243 / 399, abs=0.02)


@pytest.mark.parametrize("tiles", [1, 2, 9, 50, 400])
def test_a_disc_of_tissue_has_few_batches_that_are_not_full(tiles):
    calls = scaling_efficiency.disc_calls(tiles)
    assert tiles / 8 <= calls <= tiles
    assert calls <= tiles / 8 + 4 * math.sqrt(tiles)


def test_tile_by_tile_a_step_lasts_as_long_as_the_fullest_device():
    cost = scaling_efficiency.tile_by_tile(call_s=2.0, tile_mm=1.0)
    slides = slides_of(1, 1, 400, 1)
    sizes = cost.sizes(slides)
    assert sizes.tolist() == [1, 1, scaling_efficiency.disc_calls(400), 1]
    assert cost.step(slides, sizes, [[0, 1], [2, 3]]) == 2.0 * (sizes[2] + 1)
    assert cost.step(slides, sizes, [[0, 1]]) == 4.0


def test_padded_all_devices_wait_for_the_largest_slide():
    cost = scaling_efficiency.padded(lambda s: s.area.max(), lambda n: 3 * n)
    slides = slides_of(1, 7, 2, 5)
    assert cost.step(slides, cost.sizes(slides), [np.array([0]), np.array([2])]) == 6
    assert cost.step(slides, cost.sizes(slides), [np.arange(2), np.arange(2, 4)]) == 21


def test_packing_never_makes_a_step_longer_and_one_device_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(scaling_efficiency, "DRAWN", 1)
    cost = scaling_efficiency.tile_by_tile(1.0, 0.512)
    seconds = {
        packing: scaling_efficiency.step_seconds(cost, 8, 4, packing)
        for packing in PACKINGS
    }
    drawn, by_size, alike = (together for together, _ in seconds.values())
    assert drawn > by_size > alike
    alones = [alone for _, alone in seconds.values()]
    assert alones == pytest.approx([alones[0]] * 3)  # all slides, in whatever order
    assert alike >= alones[0]
    together, alone = scaling_efficiency.step_seconds(cost, 1, 4, "as drawn")
    assert together == alone


def test_a_row_of_efficiency_counts_gradients_and_their_way_round_the_ring():
    (case,) = (c for c in scaling_efficiency.costs("h200") if c[0] == "mean")
    row = scaling_efficiency.efficiency_row("h200", 16, *case)
    assert set(COLUMNS) <= set(row)
    assert row["processes"] == 2
    weights = 1024 * 512 + 512 + 512 * 2 + 2
    assert row["collective_bytes"] == pytest.approx(4 * weights, rel=0.01)
    link = 400e9 / 8
    assert row["all_reduce_s"] == 2 * 15 / 16 * row["collective_bytes"] / link
    assert 0 < row["as_drawn"] < row["like_sizes"] < 1


def test_collectives_of_a_compiled_step_are_counted_by_kind(monkeypatch):
    if jax.device_count() < 2:
        pytest.skip("one device sends nothing")

    def make(mesh):
        total = lambda x: jax.lax.psum(x.sum(0), "data")
        of_all = jax.shard_map(total, mesh=mesh, in_specs=P("data"), out_specs=P())
        x = jax.ShapeDtypeStruct((mesh.size, 1000), jnp.float32)
        return jax.jit(of_all), (placed(mesh, x, "data"),)

    made = [Program("a", "step, 8", make), Program("a", "step, 9", make)]
    monkeypatch.setattr(
        scaling, "programs", lambda: [*made, Program("a", "look", make)]
    )
    cpu = lambda chip, count: jax.devices()[:count]
    monkeypatch.setattr(scaling, "described_devices", cpu)
    before = jax.config.jax_enable_compilation_cache
    try:
        (row,) = scaling.collective_rows("v5p", 2, [""])
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    assert row["program"] == "step, 8"
    assert (row["collectives"], row["collective_bytes"]) == (1, 4000)
    assert row["kinds"] == "1 all-reduce: 4,000 B"


def test_without_faults_every_shard_takes_what_its_slides_take():
    result = simulate(np.full(12, 4), 3, 3, RATES, Faults())
    assert result["hours"] * HOUR_S == 10 + 12 * 0.1 + 4 * 2 + 4 * (5 + 4 * 0.5)
    assert result["kills"] == result["lost_share"] == result["idle_share"] == 0


def test_a_worker_takes_the_next_shard_and_looks_at_what_others_made():
    """Four slides in two shards, by one worker: the second finds two files."""
    result = simulate(np.zeros(4), 2, 1, RATES, Faults())
    one = 10 + 4 * 0.1 + 2 * 2 + 2 * 5
    assert result["hours"] * HOUR_S == pytest.approx(2 * one + 2 * RATES.scan)
    assert result["scan_share"] == pytest.approx(2 / (2 * one + 2))


def test_a_killed_shard_keeps_whole_files_and_finds_its_tissue_again():
    before = 10 + 4 * 0.1 + 4 * 2
    kill = before + 5 + 2  # in the second of four slides
    faults = Faults(restart=100, kills={0: kill})
    result = simulate(np.zeros(4), 1, 1, RATES, faults)
    again = before + 1 * RATES.scan + 3 * 5
    assert result["hours"] * HOUR_S == pytest.approx(kill + 100 + again)
    assert result["kills"] == 1
    assert result["lost_share"] == pytest.approx(2 / (kill + again))
    assert result["tissue_again_share"] == pytest.approx(4 * 2 / (kill + again))


def test_a_shard_that_is_killed_before_its_first_slide_does_not_end():
    result = simulate(np.zeros(4), 1, 1, RATES, Faults(between_kills=0.01))
    assert result["hours"] is result["hours_99"] is None
    assert result["kills"] == ATTEMPTS - 1


def test_refused_slides_cost_their_tissue_and_slow_ones_their_factor():
    refused = simulate(np.ones(4), 1, 1, RATES, Faults(refused=1.0))
    before = 10 + 4 * 0.1 + 4 * 2
    assert refused["hours"] * HOUR_S == before
    slow = simulate(np.ones(4), 1, 1, RATES, Faults(slow_slides=1.0, slide_factor=10))
    assert slow["hours"] * HOUR_S == pytest.approx(before + 4 * (5 + 10 * 0.5))
    half = simulate(np.ones(4), 1, 1, RATES, Faults(slow_starts=1.0, start_factor=2))
    assert half["hours"] * HOUR_S == pytest.approx(2 * (before + 4 * 5.5))


def test_rows_of_other_parts_and_of_other_chips_stay(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    rates = RATES._asdict() | {"status": 1.0, "large_tissue": 1.0, "large_bytes": 1}
    chip = {"part": "collectives", "method": "mean", "chip": "h200", "devices": 16}
    other = {"part": "collectives", "method": "max", "chip": "v5p", "devices": 64}
    gone = other | {"method": "mean"}
    old = [{"part": "efficiency", "method": "old"}, {"part": "shards"}]
    record.write(file, [{"part": "run"} | rates, chip, other, gone, *old])
    new = {"part": "efficiency", "method": "new"}
    monkeypatch.setattr(scaling, "efficiency_rows", lambda quick: [new])
    monkeypatch.setattr(scaling, "collective_rows", lambda chip, devices, only: [])
    common = {"out": file, "quick": True, "chip": "v5p", "devices": 64}
    common["only"] = ["mean"]
    every = ["efficiency", "shards", "collectives"]
    rows = list(scaling.rows(argparse.Namespace(parts=every, **common)))
    assert rows[:3] == [{"part": "run"} | rates, chip, other]
    assert gone not in rows
    assert [row for row in rows if row["part"] == "efficiency"] == [new]
    simulated = [row for row in rows if row["part"] == "shards"]
    assert [row["scenario"] for row in simulated] == list(scaling.SCENARIOS)
    record.write(file, rows)


def test_links_are_those_of_data_sheets():
    assert chips.CHIPS["v5p"].link == 100e9
    assert chips.CHIPS["h200"].link == 50e9
