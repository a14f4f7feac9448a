"""What tables need beyond the rows of a benchmark: groups, means, ranges, ratios."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.coverage import worst as coverage  # noqa: F401
from benchmarks.run_folder import ENDS, grouped, over_cohorts
from wsi_jax.evals.intervals import Interval

Rows = Sequence[Mapping]


def made(report: Mapping) -> str:
    """When, from which commit and on what a report was made."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{report['date'][:10]}, commit `{report['commit'][:12]}`, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['device']}, JAX {versions['jax']}."
    )


def having(name: str) -> Callable[[Rows], Rows]:
    """The rows that have a value of a name, by preset."""
    return lambda rows: sorted(
        (row for row in rows if row.get(name) is not None),
        key=lambda row: row.get("preset", ""),
    )


def where(*pairs: str) -> Callable[[Rows], Rows]:
    """The rows that have all of some values, as "name=value"."""
    wanted = [pair.split("=", 1) for pair in pairs]
    return lambda rows: [
        row for row in rows if all(str(row.get(k)) == v for k, v in wanted)
    ]


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
    cohorts, parts = [row for row in rows if "seed" in row], []
    for (preset,), mine in grouped(cohorts, "preset").items():
        seeds = {row["seed"]: row for row in mine}
        some = {seed: row for seed, row in seeds.items() if "none" in row}
        total = lambda end, some=some: sum(
            row[f"{kind}{end}"] for row in some.values() for kind in ("signal", "none")
        )
        if some:
            held = f"{total('_held')} of {total('')}"
            parts.append(f"`{preset}` {_listed(some)}: {held}")
        if bare := seeds.keys() - some.keys():
            parts.append(f"`{preset}` {_listed(bare)}: no certificate")
    return "; ".join(parts)


def by_seed(*names: str) -> Callable[[Rows], Rows]:
    """One row for the runs that agree on some names: their mean AUC, and each AUC."""

    def table(rows):
        rows = [row for row in rows if row.get("learner") != "majority"]
        return [
            dict(zip(names, values, strict=True))
            | {
                "auc": _mean(mine, "auc"),
                "each": "; ".join(
                    f"{r['auc']:.3f} ({r['auc_lo']:.3f} to {r['auc_hi']:.3f})"
                    for r in sorted(mine, key=lambda r: r["seed"])
                ),
                "minutes": sum(r.get("minutes", 0) for r in mine),
            }
            for values, mine in grouped(rows, *names).items()
        ]

    return table


def certificates(rows: Rows) -> Rows:
    """One row for each cohort: AUCs of probes in its band, off it, and of metadata."""
    table = []
    for mine in grouped(rows, "preset", "seed").values():
        outside = [r for r in mine if r["expected"] == "none" and "field" in r["probe"]]
        signal = [
            f"{r['auc']:.2f} at {r['mpp']:g} um/px"
            + " (neighbours)" * ("neighbours" in r["probe"])
            for r in mine
            if r["expected"] == "signal"
        ]
        scales = ", ".join(f"{s:g}" for s in sorted({r["mpp"] for r in outside}))
        aucs = [r["auc"] for r in outside]
        counts = {"held": sum(r["ok"] for r in mine), "of": len(mine)}
        table += [
            row
            | {"signal": ", ".join(signal) or "nowhere"}
            | {"none": f"{min(aucs):.2f} to {max(aucs):.2f} at {scales} um/px"}
            | counts
            for row in mine
            if row["probe"] == "metadata only"
        ]
    return table


def pooling(rows: Rows) -> Rows:
    """With the work of each row against that of one chunk for the whole bag."""
    whole = {
        (r["method"], r["tiles"]): r["flops"] for r in rows if r["chunk"] == r["tiles"]
    }
    return [r | {"work": r["flops"] / whole[r["method"], r["tiles"]]} for r in rows]


def magnification(rows: Rows) -> Rows:
    """With each magnification's share of the attention."""
    shares = lambda row: [f"{row[f'mass_{mpp}']:.2f} at {mpp}" for mpp in _mpps(row)]
    return [row | {"shares": ", ".join(shares(row))} for row in rows]


def uneven(when: str, preset: str | None = None) -> Callable[[Rows], str]:
    """The furthest that a magnification's share is from an even one.

    Args:
        when: "first" or "last" step of training.
        preset: preset of the rows that count; None for all.
    """

    def text(rows):
        rows = [r for r in rows if preset in (None, r["preset"])]
        mpps = _mpps(rows[0]) if rows else []
        gaps = [abs(r[f"{when}_{mpp}"] - 1 / len(mpps)) for r in rows for mpp in mpps]
        return f"{max(gaps):.3f}" if gaps else ""

    return text


def needle(rows: Rows) -> Rows:
    """One row for each budget of crops and learner, "all" crops last."""
    order = lambda r: (r["attentions"], r["crops"] or float("inf"))
    runs = sorted((row for row in rows if "auc" in row), key=order)
    runs = [row | {"crops": row["crops"] or "all"} for row in runs]
    return by_seed("attentions", "crops", "learner")(runs)


def zoom_means(rows: Rows) -> Rows:
    """Means over independent cohorts, of each strategy at each share of the tiles."""
    table = []
    for values, mine in _strategies(r for r in rows if "auc" in r):
        mine = sorted(mine, key=lambda r: r["seed"])
        aucs = [Interval(*(r[f"auc{end}"] for end in ENDS)) for r in mine]
        means = {n: _mean(mine, n) for n in ("tiles_read", "calibration_error")}
        each = ", ".join(f"{auc.value:.2f}" for auc in aucs)
        table.append(values | means | over_cohorts(aucs, "auc") | {"each": each})
    return table


def zoom_gains(rows: Rows) -> Rows:
    """What the policy gains on other strategies; how much of the gap it closes."""
    gains = [row for _, mine in _strategies(having("auc_diff")(rows)) for row in mine]
    random = lambda row: row["way"] == "policy - random"
    return [r | {"closed": r["gap_closed"] if random(r) else None} for r in gains]


def small(rows: Rows) -> str:
    """Share of the tumour slides with less lesion than a child covers, by preset."""
    runs = having("lesions_within_a_child")(rows)
    return ", ".join(
        f"{_mean(mine, 'lesions_within_a_child'):.0%} in `{preset}`"
        for (preset,), mine in grouped(runs, "preset").items()
    )


def _strategies(rows):
    """Names and rows of each strategy, by preset, settings and share."""
    names = "preset", "settings", "share", "way"
    groups = grouped(sorted(rows, key=lambda r: r["share"]), *names)
    for key in sorted(groups, key=lambda key: key[:3]):
        yield dict(zip(names, key, strict=True)), groups[key]


def _mean(rows, name):
    return statistics.fmean(row[name] for row in rows)


def _mpps(row):
    return [n.removeprefix("mass_") for n in row if n.startswith("mass_")]


def _listed(seeds):
    return ", ".join(map(str, sorted(seeds)))
