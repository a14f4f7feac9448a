"""README's tables of methods that look: their magnification, needles, seconds."""

from benchmarks.record import auc, made

SECONDS = (
    "train_step_s",
    "train_step_s_patch_all",
    "infer_slide_s",
    "infer_slide_s_patch_all",
)


def magnification(report: dict) -> str:
    """Share of the attention at each magnification, on test slides."""
    rows = report["rows"]
    mpps = [name.removeprefix("mass_") for name in rows[0] if name.startswith("mass_")]
    columns = ["preset", "seed", *(f"{mpp} um/px" for mpp in mpps), "AUC (95 %)"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for r in rows:
        shares = [f"{r[f'mass_{mpp}']:.2f}" for mpp in mpps]
        cells = f"`{r['preset']}`", r["seed"], *shares, auc(r)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    apart = lambda when, rows: max(
        abs(r[f"{when}_{mpp}"] - 1 / len(mpps)) for r in rows for mpp in mpps
    )
    said = (
        f"When training begins no share is further than {apart('first', rows):.3f} "
        f"from 1/{len(mpps)}."
    )
    if null := [r for r in rows if r["preset"] == "null"]:
        said += (
            " The step that is judged may lie before attention is learnt; when "
            f"training ends no share of `null` is further than "
            f"{apart('last', null):.3f} from it."
        )
    said += (
        f" {_spread(rows, 'crops')} crops of a slide; it has {_spread(rows, 'cells')} "
        f"cells, on average of a cohort. {_spread(rows, 'n_train')} training slides "
        f"and {_spread(rows, 'n')} test slides. {_certified(rows)} Runs at commit "
        f"{_commits(rows)}."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def needle(report: dict) -> str:
    """AUC by budget and learner, and what looking gains."""
    runs = [r for r in report["rows"] if "auc" in r]
    seeds = sorted({r["seed"] for r in runs})
    columns = ["crops", "attentions on them", "learner"]
    columns += [*(f"seed {s}: AUC (95 %)" for s in seeds), "mean"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    order = lambda r: (r["attentions"], r["crops"] or 1e9, r["learner"])
    for what in dict.fromkeys(map(order, sorted(runs, key=order))):
        mine = {r["seed"]: r for r in runs if order(r) == what}
        attentions, crops, learner = what
        cells = [auc(mine[s]) if s in mine else "" for s in seeds]
        mean = sum(r["auc"] for r in mine.values()) / len(mine)
        crops = "all" if crops == 1e9 else crops
        cells = crops, attentions, learner, *cells, f"{mean:.3f}"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    gaps = [r for r in report["rows"] if "auc_diff" in r]
    less = [
        f"Learnt less {other}, paired: "
        + "; ".join(_gap(r) for r in gaps if r["learner"] == f"learnt - {other}")
        for other in ("uniform", "patch-all")
        if any(r["learner"] == f"learnt - {other}" for r in gaps)
    ]
    most = max(r["attentions"] for r in runs)
    newest = [r for r in runs if r["attentions"] == most]
    minutes, cores = sum(r["minutes"] for r in newest), _spread(newest, "run_cores")
    said = (
        f"{'. '.join(less)}. {_spread(runs, 'n')} test slides, "
        f"{_spread(runs, 'steps')} steps. The {len(newest)} runs with {most} "
        f"attentions took {minutes:.0f} minutes in all, each on {cores} "
        f"core{'s' * (cores != '1')}. Runs at commit {_commits(runs)}."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def _gap(r: dict) -> str:
    ends = f"({r['auc_diff_lo']:+.3f} to {r['auc_diff_hi']:+.3f})"
    cohorts = f"{r['cohorts']} cohort{'s' * (r['cohorts'] > 1)}"
    of = f"{r['crops']} crops, {r['attentions']} attentions, {cohorts}"
    return f"{r['auc_diff']:+.3f} {ends} with {of}"


def attention_sampling(report: dict) -> str:
    """Seconds and their ratios, measured and predicted; AUCs where there are some."""
    header = "| against | crops of a step, of a verdict; tiles | a step "
    header += "| a verdict; with the search for tissue "
    header += "| step, predicted | verdict, predicted |"
    judged = any("auc" in r for r in report["rows"])
    header += " AUC, patch-all's, difference |" * judged
    lines = [header, "|---" * (6 + judged) + "|"]
    for r in report["rows"]:
        ms = {name: f"{1e3 * r[name]:,.0f}" for name in r if name in SECONDS}
        step = f"{ms['train_step_s']} of {ms['train_step_s_patch_all']} ms"
        look = f"{ms['infer_slide_s']} of {ms['infer_slide_s_patch_all']} ms"
        compared = ""
        if "auc" in r:
            ends = f"{r['auc_diff_lo']:+.3f} to {r['auc_diff_hi']:+.3f}"
            both = f"{r['auc']:.3f}, {r['auc_patch_all']:.3f}"
            compared = f"{both}, {r['auc_diff']:+.3f} ({ends})"
            compared += f", {r['cohorts']} cohorts"
        cells = (
            r["regime"],
            f"{r['crops']:.0f}, {r.get('crops_verdict', r['crops']):.0f}; "
            f"{r['tiles']:,.0f}",
            f"{r['train_speedup']:.1f}x ({step})",
            f"{r['infer_speedup']:.1f}x ({look}); "
            f"{r['infer_speedup_with_tissue']:.1f}x",
            f"{r['predicted_train_speedup']:.1f}x",
            f"{r['predicted_infer_speedup']:.1f}x",
            *((compared,) if judged else ()),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made(report)])


def attention_pooling_runs(report: dict) -> str:
    """How well slides are judged and tumour is found, by what weighs the tiles."""
    measures = {"auc": "AUC", "f1": "F1", "difference": "attention difference"}
    measures |= {"lift": "lift", "auprc": "average precision"}
    columns = ["preset", "weights", *(f"{name} (95 %)" for name in measures.values())]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    runs = [r for r in report["rows"] if "run_commit" in r]
    means = [r for r in report["rows"] if "seeds" in r]
    gaps = [
        f"`{r['preset']}` {r['auc_diff']:+.3f} ({r['auc_diff_lo']:+.3f} to "
        f"{r['auc_diff_hi']:+.3f}), {r['cohorts']} cohorts"
        for r in report["rows"]
        if "auc_diff" in r
    ]
    gaps = f"Joint training less two-stage, paired AUCs: {'; '.join(gaps)}. " * any(
        gaps
    )
    for r in sorted(means, key=lambda r: r["preset"]):
        digits = {"difference": 4, "lift": 2}
        cells = []
        for name in measures:
            form = f".{digits.get(name, 3)}f"
            ends = " to ".join(format(r[f"{name}_{end}"], form) for end in ("lo", "hi"))
            cells.append(f"{r[name]:{form}} ({ends})")
        cells[-1] += f", chance {r['chance']:.3f}"
        lines.append(
            f"| `{r['preset']}` | {r['weights']} | " + " | ".join(cells) + " |"
        )
    seeds = " to ".join(f"{n}" for n in sorted({r["seeds"] for r in means}))
    said = (
        f"Means over {seeds} cohorts, of {_spread(runs, 'n')} test slides each. "
        f"{gaps}{_certified(runs)} Runs at commit {_commits(runs)}."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def _certified(rows):
    """How many rows of the cohorts' certificates hold, and which cohorts have none."""
    cohorts, held, without = {(r["preset"], r["seed"]): r for r in rows}, [], []
    for preset in dict.fromkeys(preset for preset, _ in cohorts):
        mine = {seed: r for (name, seed), r in cohorts.items() if name == preset}
        some = {seed: r for seed, r in mine.items() if "none" in r}
        n, of = (
            sum(r[f"signal{what}"] + r[f"none{what}"] for r in some.values())
            for what in ("_held", "")
        )
        held += [f"{_cohorts(preset, some)}: {n} of {of}"] if some else []
        bare = mine.keys() - some.keys()
        without += [_cohorts(preset, bare)] if bare else []
    said = f"Rows of certificates that hold: {'; '.join(held)}." if held else ""
    return f"{said} Without one: {'; '.join(without)}.".strip() if without else said


def _cohorts(preset, seeds):
    return f"`{preset}` {', '.join(map(str, sorted(seeds)))}"


def _spread(rows, name):
    ends = min(r[name] for r in rows), max(r[name] for r in rows)
    return " to ".join(f"{v:,}" for v in sorted(set(ends)))


def _commits(rows):
    return ", ".join(sorted({r["run_commit"][:12] for r in rows}))
