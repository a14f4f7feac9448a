"""What tables need beyond the rows of a benchmark: groups, means, ranges, ratios."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.coverage import worst as coverage  # noqa: F401
from benchmarks.run_folder import grouped

Rows = Sequence[Mapping]


def having(name: str) -> Callable[[Rows], Rows]:
    """The rows that have a value of a name, by preset."""
    return lambda rows: sorted(
        (row for row in rows if row.get(name) is not None),
        key=lambda row: row.get("preset", ""),
    )


def made(report: Mapping) -> str:
    """When, from which commit and on what a report was made."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{report['date'][:10]}, commit `{report['commit'][:12]}`, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['device']}, JAX {versions['jax']}."
    )


def span(*names: str) -> Callable[[Rows], str]:
    """The least and the greatest value of some names."""

    def text(rows):
        values = [row[n] for row in rows for n in names if row.get(n) is not None]
        ends = sorted({min(values), max(values)}) if values else []
        return " to ".join(f"{value:,}" for value in ends)

    return text


def span_of_runs(name: str) -> Callable[[Rows], str]:
    """The same, of the rows that are one run each."""
    return lambda rows: span(name)([row for row in rows if "run_commit" in row])


def greatest(name: str) -> Callable[[Rows], str]:
    """The greatest value of a name, without decimals."""
    return lambda rows: f"{max(row[name] for row in rows):.0f}"


def commits(rows: Rows) -> str:
    """The commits at which the runs behind the rows were made."""
    return ", ".join(sorted({r["run_commit"][:12] for r in rows if "run_commit" in r}))


def certified(rows: Rows) -> str:
    """Of the rows of each preset's certificates, how many hold; seeds without one."""
    cohorts = {(r["preset"], r["seed"]): r for r in rows if "seed" in r}
    parts = []
    for preset in dict.fromkeys(preset for preset, _ in cohorts):
        mine = {seed: r for (name, seed), r in cohorts.items() if name == preset}
        some = {seed: r for seed, r in mine.items() if "none" in r}
        total = lambda end, some=some: sum(
            r[f"signal{end}"] + r[f"none{end}"] for r in some.values()
        )
        if some:
            parts.append(f"{_seeds(preset, some)}: {total('_held')} of {total('')}")
        if bare := mine.keys() - some.keys():
            parts.append(f"{_seeds(preset, bare)}: no certificate")
    return "; ".join(parts)


def by_seed(*names: str) -> Callable[[Rows], Rows]:
    """One row for the runs that agree on some names: their mean AUC, and each AUC."""

    def table(rows):
        rows = [row for row in rows if row.get("learner") != "majority"]
        return [
            dict(zip(names, values, strict=True))
            | {"auc": _mean(mine, "auc"), "each": _each(mine)}
            for values, mine in grouped(rows, *names).items()
        ]

    return table


def certificates(rows: Rows) -> Rows:
    """One row for each cohort: AUCs of probes in its band, off it, and of metadata."""
    table = []
    for mine in grouped(rows, "preset", "seed").values():
        within = [r for r in mine if r["expected"] == "signal"]
        outside = [r for r in mine if r["expected"] == "none" and "field" in r["probe"]]
        metadata = next(r for r in mine if r["probe"] == "metadata only")
        signal = [
            f"{r['auc']:.2f} at {r['mpp']:g} um/px"
            + " (neighbours)" * ("neighbours" in r["probe"])
            for r in within
        ]
        scales = ", ".join(f"{s:g}" for s in sorted({r["mpp"] for r in outside}))
        aucs = [r["auc"] for r in outside]
        table.append(
            metadata
            | {
                "signal": ", ".join(signal) or "nowhere",
                "none": f"{min(aucs):.2f} to {max(aucs):.2f} at {scales} um/px",
                "held": sum(r["ok"] for r in mine),
                "of": len(mine),
            }
        )
    return table


def pooling(rows: Rows) -> Rows:
    """With the work of each row against that of one chunk for the whole bag."""
    whole = {
        (r["method"], r["tiles"]): r["flops"] for r in rows if r["chunk"] == r["tiles"]
    }
    return [r | {"work": r["flops"] / whole[r["method"], r["tiles"]]} for r in rows]


def magnification(rows: Rows) -> Rows:
    """With each magnification's share of the attention."""
    return [r | {"shares": _shares(r)} for r in rows]


def uneven(when: str, preset: str | None = None) -> Callable[[Rows], str]:
    """The furthest that a magnification's share is from an even one.

    Args:
        when: "first" or "last" step of training.
        preset: of the rows that count; None for all.
    """

    def text(rows):
        rows = [r for r in rows if preset in (None, r["preset"])]
        mpps = _mpps(rows[0]) if rows else []
        gaps = [abs(r[f"{when}_{mpp}"] - 1 / len(mpps)) for r in rows for mpp in mpps]
        return f"{max(gaps):.3f}" if gaps else ""

    return text


def needle(rows: Rows) -> Rows:
    """One row for each budget of crops and learner, "all" crops last."""
    runs = [r | {"crops": r["crops"] or "all"} for r in rows if "auc" in r]
    order = lambda r: (r["attentions"], r["crops"] == "all", str(r["learner"]))
    runs.sort(key=lambda r: (*order(r)[:2], 0 if r["crops"] == "all" else r["crops"]))
    names = "attentions", "crops", "learner"
    return [
        dict(zip(names, values, strict=True))
        | {"auc": _mean(mine, "auc"), "each": _each(mine)}
        | {"minutes": sum(r["minutes"] for r in mine)}
        for values, mine in grouped(runs, *names).items()
    ]


def zoom_means(rows: Rows) -> Rows:
    """Means over independent cohorts, of each strategy at each share of the tiles."""
    table = []
    for values, mine in _strategies(r for r in rows if "auc" in r):
        # Each cohort has an interval of its own.
        half = math.hypot(*((r["auc_hi"] - r["auc_lo"]) / 2 for r in mine)) / len(mine)
        auc, mine = _mean(mine, "auc"), sorted(mine, key=lambda r: r["seed"])
        means = {n: _mean(mine, n) for n in ("tiles_read", "calibration_error")}
        each = ", ".join(f"{r['auc']:.2f}" for r in mine)
        ends = {"auc": auc, "auc_lo": auc - half, "auc_hi": auc + half, "each": each}
        table.append(values | means | ends)
    return table


def zoom_gains(rows: Rows) -> Rows:
    """What the policy gains on other strategies; how much of the gap it closes."""
    gains = []
    for _, mine in _strategies(r for r in rows if "auc_diff" in r):
        (row,) = mine
        random = row["way"] == "policy - random"
        gains.append(row | {"closed": row["gap_closed"] if random else None})
    return gains


def small(rows: Rows) -> str:
    """Share of the tumour slides with less lesion than a child covers, by preset."""
    runs = [r for r in rows if "lesions_within_a_child" in r]
    return ", ".join(
        f"{_mean(mine, 'lesions_within_a_child'):.0%} in `{preset}`"
        for (preset,), mine in grouped(runs, "preset").items()
    )


def _strategies(rows):
    names = "preset", "settings", "way", "share"
    groups = grouped(sorted(rows, key=lambda r: r["share"]), *names)
    order = {key: i for i, key in enumerate(groups)}
    for key in sorted(groups, key=lambda key: (key[0], key[1], key[3], order[key])):
        yield dict(zip(names, key, strict=True)), groups[key]


def _mean(rows, name):
    return statistics.fmean(r[name] for r in rows)


def _each(rows):
    return "; ".join(
        f"{r['auc']:.3f} ({r['auc_lo']:.3f} to {r['auc_hi']:.3f})"
        for r in sorted(rows, key=lambda r: r["seed"])
    )


def _mpps(row):
    return [n.removeprefix("mass_") for n in row if n.startswith("mass_")]


def _shares(row):
    return ", ".join(f"{row[f'mass_{mpp}']:.2f} at {mpp}" for mpp in _mpps(row))


def _seeds(preset, seeds):
    return f"`{preset}` {', '.join(map(str, sorted(seeds)))}"
