"""Extraction by shards that are killed and begun again: a simulation of its events.

A shard's process imports, reads the manifest, looks through the folder of features for
what dead processes left, finds the tissue of all its slides, and makes what features
are missing, in order. What a killed one has finished stays. The next free worker takes
the shard that has waited longest.
"""

import heapq
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

HOUR_S = 3600.0
ATTEMPTS = 200  # of a shard; one that is killed as often does not end


class Rates(NamedTuple):
    """Seconds, as `benchmarks.shard_run` measures them.

    Attributes:
        start: of a process before and after all its slides, the compiler's included.
        row: of a line of the manifest.
        scan: of a file in the folder of features, at each start.
        tissue: of each of the shard's slides, at each start.
        slide: of a slide's features, its tiles not counted.
        tile: of a tile.
    """

    start: float
    row: float
    scan: float
    tissue: float
    slide: float
    tile: float = 0.0


class Faults(NamedTuple):
    """What goes wrong.

    Attributes:
        between_kills: mean seconds that a process runs before it is killed.
        restart: seconds until it is begun again.
        refused: share of slides that are refused.
        slow_slides, slide_factor: share of slides on a slow disk, how much slower.
        slow_starts, start_factor: share of processes on a slow machine, how much.
        kills: seconds after which the first process of a shard is killed, by shard.
    """

    between_kills: float = math.inf
    restart: float = 0.0
    refused: float = 0.0
    slow_slides: float = 0.0
    slide_factor: float = 1.0
    slow_starts: float = 0.0
    start_factor: float = 1.0
    kills: Mapping[int, float] = {}


def simulate(
    tiles: np.ndarray, shards: int, workers: int, rates: Rates, faults: Faults, seed=0
) -> dict:
    """What becomes of an extraction of slides that have so many tiles each.

    Returns:
        hours until the last slide, None where a shard was killed too often, and until
        99 % of the slides; kills; and of the workers' time the shares that were lost
        on features that were not whole, spent on finding files or tissue again, or
        without a shard.
    """
    rng, n = np.random.default_rng(seed), len(tiles)
    slow = np.where(rng.random(n) < faults.slow_slides, faults.slide_factor, 1.0)
    cost = rates.slide + rates.tile * tiles * slow
    cost[rng.random(n) < faults.refused] = 0
    done_at, attempts = np.full(n, np.inf), [0] * shards
    waiting, free = [(0.0, shard) for shard in range(shards)], [0.0] * workers
    total = scans = again = lost = end = 0.0
    while waiting:
        ready, shard = heapq.heappop(waiting)
        began = max(ready, heapq.heappop(free))
        factor = faults.start_factor if rng.random() < faults.slow_starts else 1.0
        lasts = faults.between_kills * rng.standard_exponential()
        lasts = lasts if attempts[shard] else faults.kills.get(shard, lasts)
        mine = np.arange(shard, n, shards)
        scan = factor * rates.scan * np.count_nonzero(done_at <= began)
        tissue = factor * rates.tissue * len(mine)
        before = factor * (rates.start + rates.row * n) + scan + tissue
        left = mine[done_at[mine] > began]
        finished = before + factor * np.cumsum(cost[left])
        whole = float(finished[-1]) if len(left) else before
        ran, kept = min(lasts, whole), finished <= lasts
        done_at[left[kept]] = began + finished[kept]
        total, scans = total + ran, scans + min(ran, scan)
        again += min(ran, tissue) if attempts[shard] else 0
        attempts[shard] += 1
        heapq.heappush(free, began + ran)
        if lasts >= whole:
            end = max(end, began + whole)
            continue
        lost += ran - max(finished[kept], default=min(ran, before))
        end = math.inf if attempts[shard] == ATTEMPTS else end
        if attempts[shard] < ATTEMPTS:
            heapq.heappush(waiting, (began + ran + faults.restart, shard))
    most = float(np.sort(done_at)[int(0.99 * (n - 1))])
    finite = lambda value: value if math.isfinite(value) else None
    return {
        "hours": finite(end / HOUR_S), "hours_99": finite(most / HOUR_S),
        "kills": sum(attempts) - shards, "lost_share": lost / total,
        "scan_share": scans / total, "tissue_again_share": again / total,
        "idle_share": 1 - total / (workers * end) if math.isfinite(end) else None,
    }  # fmt: skip
