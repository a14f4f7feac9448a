"""README's tables of the path from a slide's file to its features."""

from benchmarks.record import made


def tile_loader(report: dict) -> str:
    """Tiles a second, beside PyTorch's loader and beside decoding alone."""
    header = "| slide | grid | um/px, against the file's | tiles a second "
    lines = [header + "| against PyTorch | against decoding alone |", "|---" * 6 + "|"]
    for r in report["rows"]:
        peer = r["ratio_to_pytorch"]
        cells = (
            f"`{r['slide']}`",
            r["grid"],
            f"{r['coarser']}x",
            f"{r['loader_tiles_per_s']:,.0f}",
            f"{peer:.1f}x" if peer else "",
            f"{r['ratio_to_raw_decode']:.2f}x",
        )
        lines.append("| " + " | ".join(cells) + " |")
    grown = max(r["rss_growth_mb"] for r in report["rows"])
    said = (
        f"From file to file the peak of memory grew by {grown:.0f} MB in all, at most."
    )
    return "\n".join([*lines, "", said, "", made(report)])


def extract(report: dict) -> str:
    """Slides and tiles a second end to end, and how long the device waited."""
    header = "| encoder | threads | tiles in a batch | slides a second "
    lines = [header + "| tiles a second | the device waited |", "|---" * 6 + "|"]
    for r in report["rows"]:
        cells = (
            r["encoder"],
            r["threads"],
            r["batch"],
            f"{r['slides_per_s']:.2f}",
            f"{r['tiles_per_s']:,.0f}",
            f"{r['device_waited_percent']:.0f} %",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", made(report)])
