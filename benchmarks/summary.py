"""The table and the plots of all benchmarks, from the records that their runs have left."""

from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dearkd import disk, record
from dearkd.report.figures import STYLE

QUANTITY = {"speed": "times as fast", "time": "times as long", "memory": "times the memory"}


def write(folder: Path) -> str:
    """Write table.md, table.csv, ratios.png and growth.png into the folder; returns the table."""
    records = {path.stem: record.read(path) for path in sorted(folder.glob("*.json"))}
    frame = pd.DataFrame(
        [{"benchmark": name, **line} for name, values in records.items() for line in values["results"]]
    )
    frame.to_csv(folder / "table.csv", index=False, float_format="%.4f", lineterminator="\n")
    text = f"{table(frame)}\n\n{machine(records)}\n"
    disk.write(folder / "table.md", text)
    with plt.style.context(STYLE):
        if len(frame):
            ratios(frame, folder / "ratios.png")
        if (folder / "growth.csv").is_file():
            growth(pd.read_csv(folder / "growth.csv"), folder / "growth.png")
    return text


def table(frame: pd.DataFrame) -> str:
    """A line per result, in Markdown."""
    lines = ["| what | setting | ours / peer | spread | target | met | ours | peer |", "|" + " --- |" * 8]
    for r in frame.itertuples():
        memory = (
            f", {r.ours_peak_mb:.0f} MB" if r.ours_peak_mb else "",
            f", {r.peer_peak_mb:.0f} MB" if r.peer_peak_mb else "",
        )
        lines.append(
            f"| {r.name} | {r.setting} | {r.ratio:.2f} {QUANTITY[r.kind]} | {r.low:.2f} to {r.high:.2f} | "
            f"{r.bound} {r.target:g} | {'yes' if r.met else '**no**'} | {r.ours:.3g} {r.unit}{memory[0]} | "
            f"{r.peer:.3g} {r.unit}{memory[1]} ({r.peer_name}) |"
        )
    return "\n".join(lines)


def machine(records: dict[str, dict]) -> str:
    """What the figures were measured on; one sentence where all records agree."""
    found = {
        f"{values['hardware']['cpu']}, {values['threads']} thread{'s' * (values['threads'] > 1)}, "
        f"torch {values['versions']['torch']}, commit {(values['git']['sha'] or 'unknown')[:7]}"
        for values in records.values()
    }
    peaks = ", ".join(f"{name} {values['peak_mb']:,.0f}" for name, values in records.items())
    return (
        f"*spread*: quartiles over the rounds. Most memory of each benchmark's process, MB: {peaks}. "
        f"Measured on {'; '.join(sorted(found))}. "
        "Ratios carry over to other machines better than absolute figures."
    )


def ratios(frame: pd.DataFrame, path: Path) -> None:
    """Each ratio with its spread over its target: to the right of 1 is better than the target asks for."""
    sign = frame["bound"].map({"at least": 1.0, "at most": -1.0})
    better = (frame["ratio"] / frame["target"]) ** sign
    ends = pd.concat([(frame[end] / frame["target"]) ** sign for end in ("low", "high")], axis=1)
    drawn, ax = plt.subplots(figsize=(6.6, 0.9 + 0.24 * len(frame)))
    rows = range(len(frame))[::-1]
    colours = ["#7fb069" if met else "#c1666b" for met in frame["met"]]
    ax.hlines(rows, ends.min(axis=1), ends.max(axis=1), colors=colours, linewidth=2.5, alpha=0.5)
    ax.scatter(better, rows, c=colours, marker="o", zorder=3)
    ax.axvline(1.0, color="#0b3954", linewidth=1.0)
    ax.set_yticks(rows, frame["name"])
    ax.set_xscale("log")
    ticks = [t for t in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8, 16) if better.min() / 1.3 <= t <= better.max() * 1.3]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("over the target; bar: quartiles")
    drawn.savefig(path, metadata={"Software": None})
    plt.close(drawn)


def growth(frame: pd.DataFrame, path: Path) -> None:
    """Time and memory of a pass through an attention layer against tokens, heads and batch, and of an epoch's order."""
    drawn, axes = plt.subplots(2, 4, figsize=(8.6, 4.2), sharex="col")
    for column, (along, part) in enumerate(frame.groupby("along", sort=False)):
        for row, (quantity, label) in enumerate((("ms", "ms"), ("mb", "MB"))):
            ax = axes[row, column]
            for method, line in part.groupby("method", sort=False):
                ax.plot(line["value"], line[quantity], label=method)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ticks = part["value"].unique()
            ax.set_xticks(ticks, [f"{v / 1000:,.0f}k" if v >= 10_000 else str(v) for v in ticks])
            ax.minorticks_off()
            if column == 0:
                ax.set_ylabel(label)
        axes[1, column].set_xlabel(along)
    axes[0, -1].set_title("order of an epoch", fontsize=8)
    drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    drawn.savefig(path, metadata={"Software": None})
    plt.close(drawn)
