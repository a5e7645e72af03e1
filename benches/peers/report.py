"""Results, and what is written of them: JSON with every run, Markdown with medians and verdicts."""

import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path

from measure import DISTURBED, wrong
from verdict import BOUNDS, FIGURES, RULE, SUSPICIOUS, bars, bound_by, compared, failures


class Results:
    """Runs by cell and server: records of figures, or sentences that say why there is none."""

    def __init__(self, cells, names, titles):
        self.cells = cells
        self.names = names
        self.titles = titles
        self.runs = {}

    def add(self, cell, name, run):
        self.runs.setdefault((cell, name), []).append(run)

    def of(self, cell, name):
        return self.runs.get((cell, name), [])

    def records(self, cell, name):
        return [run for run in self.of(cell, name) if isinstance(run, dict)]

    def reasons(self, cell, name):
        return [run for run in self.of(cell, name) if isinstance(run, str)]


def write_atomically(path, text):
    """So that whoever is killed while writing leaves what was there before."""
    partly = path.with_name(path.name + ".partly")
    partly.write_text(text)
    os.replace(partly, path)


def write(path, results, about):
    """Both files: `path` with .md and .json. `about`: what was run, where, with what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = [
        {
            "cell": asdict(cell),
            "receivers": round(cell.receivers, 2),
            "server": name,
            "runs": results.of(cell, name),
        }
        for cell in results.cells
        for name in results.names
        if results.of(cell, name)
    ]
    write_atomically(
        Path(f"{path}.json"), json.dumps({"about": about, "results": runs}, indent=1) + "\n"
    )
    write_atomically(Path(f"{path}.md"), markdown(results, about))


def markdown(results, about):
    parts = [head(about)]
    if about["left_undone"]:
        parts.append(f"**Not complete**: {about['left_undone']}.")
    records = [
        record
        for cell in results.cells
        for name in results.names
        for record in results.records(cell, name)
    ]
    disturbed = sum(record.get("disturbed", 0) > DISTURBED for record in records)
    if disturbed:
        parts.append(
            f"**In {disturbed} of {len(records)} runs other programs or machines took over"
            f" {DISTURBED:.0%} of the server's core**; the JSON says in which (`disturbed`)."
        )
    for theirs in ("uwebsockets", "ringfeed-before"):
        if "ringfeed" in results.names and theirs in results.names:
            parts.append(behind(results, "ringfeed", theirs))
    found = bars(results)
    if found:
        parts.append(
            "## Bars\n\n| figure | bar | found | |\n|---|---|--:|---|\n"
            + "\n".join(
                f"| {figure} | {bar} | {value} | {'' if met else 'not met'} |"
                for figure, bar, value, met in found
            )
        )
    for title, meaning, limits in BOUNDS:
        bound = bound_by(results, limits)
        if bound:
            parts.append(
                f"## {title}\n\n{meaning}\n\n"
                + "\n".join(
                    f"* {cell.name}: {', '.join(results.titles[n] for n in names)}"
                    for cell, names in bound
                )
            )
    if about["left_out"]:
        parts.append("## Left out\n\n" + "\n".join(f"* {what}" for what in about["left_out"]))
    parts.append("## All cells\n\n" + table(results))
    return "\n\n".join(parts) + "\n"


def head(about):
    machine = about["machine"]
    confirmed = (
        f" (and {about['confirm']} more of cells in which a median of ringfeed was over"
        f" {SUSPICIOUS - 1:.0%} worse or behind)"
        if about["confirm"]
        else ""
    )
    lines = [
        f"# {about['date']}: ringfeed and others, {about['preset']}",
        "",
        (
            f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']};"
            f" {about['network']}. Server on core {about['server_core']}, loadgen with"
            f" {about['threads']} connection thread{'s' if about['threads'] > 1 else ''} on cores"
            f" {about['loadgen_cores']}. Medians of {about['rounds']} interleaved rounds of"
            f" {about['seconds']:g} s{confirmed}, a fresh server for each run. Latency is from the"
            " intended time of publishing to the receipt; where it is saturated, that is mostly"
            " the queue that loadgen allows. `lost` is the worst of all rounds, with duplicates,"
            " reordering, corruption and lost connections."
        ),
        "",
        RULE,
        "",
        f"Commit {about['commit']}. " + "; ".join(about["versions"]) + ".",
        "",
        f"Command: `{about['command']}`",
    ]
    if about["warnings"]:
        lines += ["", *(f"**{warning}**" for warning in about["warnings"])]
    return "\n".join(lines)


def behind(results, ours, theirs):
    """Where one server is behind another, worst first."""
    who, other = results.titles[ours], results.titles[theirs]
    lines = [f"## Where {who} is behind {other}", ""]
    for cell, what in failures(results, ours):
        lines.append(f"* **{cell.name}: {what}**")
    all_of_them = compared(results, ours, theirs)
    if not all_of_them:
        return "\n".join([*lines, "Nothing was measured of both."])
    worse = sorted(
        ((cell, d) for cell, d in all_of_them if d.is_behind), key=lambda pair: -pair[1].ratio
    )
    unsure = sorted(
        ((cell, d) for cell, d in all_of_them if d.is_noise and d.ratio > SUSPICIOUS),
        key=lambda pair: -pair[1].ratio,
    )
    ahead = sum(d.is_ahead for _, d in all_of_them)
    count = len({cell for cell, _ in all_of_them})
    lines.append(
        f"{count} cells with {len(FIGURES)} figures each: {who} is ahead in {ahead}, even within"
        f" the noise in {len(all_of_them) - ahead - len(worse)}, **behind in"
        f" {len(worse)}**{f' of {len({cell for cell, _ in worse})} cells' if worse else ''}."
    )
    for title, rows in (
        ("", worse),
        (f"Worse in the median by over {SUSPICIOUS - 1:.0%}, but within the noise:", unsure),
    ):
        if not rows:
            continue
        lines += [
            "",
            *([title, ""] if title else []),
            f"| cell | figure | {who} | {other} | worse by |",
            "|---|---|--:|--:|--:|",
        ]
        for cell, d in rows:
            a = with_spread(d.figure, d.ours, d.ours_spread)
            b = with_spread(d.figure, d.theirs, d.theirs_spread)
            lines.append(f"| {cell.name} | {d.figure.title} | {a} | {b} | {d.ratio:.2f} x |")
        lines += ["", "After ±: the spread of the rounds, where there are enough of them."]
    return "\n".join(lines)


def human(value):
    for limit, suffix in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.2f}{suffix}"
    return f"{value:.0f}"


def milliseconds(us):
    return (
        f"{us / 1000:.0f} ms"
        if us >= 100_000
        else f"{us / 1000:.1f} ms" if us >= 10_000 else f"{us / 1000:.2f} ms"
    )


def shown(figure, value):
    if figure.title == "deliveries/s":
        return human(value)
    return f"{value:.0f} ns" if figure.title.startswith("CPU") else milliseconds(value)


def with_spread(figure, value, width):
    return shown(figure, value) + ("" if width is None else f" ± {shown(figure, width)}")


def table(results):
    """Every cell, by place and size; ratios are to uWebSockets."""
    lines, places = [], {}
    for cell in results.cells:
        places.setdefault(cell.place, []).append(cell)
    for place, here in places.items():
        receivers = here[0].receivers
        lines += [
            f"### {place} ({receivers:,.{0 if receivers >= 10 else 1}f} receivers a message)",
            "",
            (
                "| size, rate | server | deliveries/s | p50 | p99 | CPU a delivery, user + system |"
                " server busy | loadgen | lost |"
            ),
            "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for cell in sorted(here, key=lambda cell: (cell.size_bytes, cell.rate == 0, cell.rate)):
            first = f"{cell.size}, {cell.pace}"
            for name in results.names:
                if results.of(cell, name):
                    lines.append(f"| {first} | {row(results, cell, name)} |")
                    first = ""
        lines.append("")
    return "\n".join(lines)


def row(results, cell, name):
    records, title = results.records(cell, name), results.titles[name]
    if not records:
        return f"{title} | {results.reasons(cell, name)[-1]} | | | | | |"

    def median(records, key):
        values = [record[key] for record in records if record.get(key) is not None]
        return statistics.median(values) if values else None

    if len(records) > 1 or results.reasons(cell, name):
        missing = len(results.of(cell, name)) - len(records)
        title += f", {missing} of {len(results.of(cell, name))} runs failed" if missing else ""
    base = results.records(cell, "uwebsockets") if name != "uwebsockets" else []
    cpu = statistics.median([r["user_ns"] + r["system_ns"] for r in records])

    def ratio(mine, key):
        other = statistics.median([key(r) for r in base]) if base else 0
        return f" ({mine / other:.2f} x)" if other else ""

    rate = median(records, "rate")
    # The median of sums is not the sum of medians: user is shown as measured, system as the rest.
    user = median(records, "user_ns")
    cells = [
        title,
        human(rate) + ratio(rate, lambda r: r["rate"]),
        *(
            "" if median(records, key) is None else milliseconds(median(records, key))
            for key in ("p50_us", "p99_us")
        ),
        f"{user:.0f} + {max(0, cpu - user):.0f} ns"
        + ratio(cpu, lambda r: r["user_ns"] + r["system_ns"]),
    ]
    busy, cores = median(records, "busy"), median(records, "loadgen_cores")
    cells += [
        "" if busy is None else f"{busy:.2f}",
        "" if cores is None else f"{cores:.2f}",
        f"{max(wrong(r) for r in records):,}",
    ]
    return " | ".join(cells)
