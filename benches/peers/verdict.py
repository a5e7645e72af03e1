"""Whether one server is behind another by more than noise, and whether bars are met."""

import statistics
from dataclasses import dataclass

import cells
from measure import BUSY, wrong

# Less of the median than this is noise whatever the spread.
NOISE_SHARE = 0.05
# The same with fewer rounds than show a spread.
NOISE_SHARE_UNKNOWN = 0.3
ROUNDS_MIN = 3
# From so many rounds on, the largest and the smallest are left out of the spread.
ROUNDS_TRIMMED = 5
# What timers and the scheduler of the generator add.
LATENCY_RESOLUTION_US = 50
# Within the noise, but worth a look.
SUSPICIOUS = 1.25

RULE = (
    "A server is behind in a figure where its median over the rounds is worse than the other's by"
    " more than each of: the larger of the two spreads (largest less smallest round; from"
    f" {ROUNDS_TRIMMED} rounds on without the two extremes), {NOISE_SHARE:.0%} of the better"
    f" median, and what can be resolved ({LATENCY_RESOLUTION_US} us of latency; two clock ticks, 20"
    f" ms, of CPU time a run). With fewer than {ROUNDS_MIN} rounds there is no spread, and"
    f" {NOISE_SHARE_UNKNOWN:.0%} of the better median stand in for it."
)


@dataclass(frozen=True)
class Figure:
    title: str
    of: object
    more_is_better: bool = False
    resolution: object = lambda record: 0


FIGURES = (
    Figure("deliveries/s", lambda r: r["rate"], more_is_better=True),
    Figure("p50", lambda r: r["p50_us"], resolution=lambda r: LATENCY_RESOLUTION_US),
    Figure("p99", lambda r: r["p99_us"], resolution=lambda r: LATENCY_RESOLUTION_US),
    Figure(
        "CPU a delivery",
        lambda r: r["user_ns"] + r["system_ns"],
        resolution=lambda r: r["cpu_resolution_ns"],
    ),
)


@dataclass(frozen=True)
class Difference:
    """One figure of one cell, ours and theirs. `ratio` above 1: ours is worse."""

    figure: Figure
    ours: float
    theirs: float
    # None with too few rounds to show one.
    ours_spread: float | None
    theirs_spread: float | None
    ratio: float
    is_noise: bool

    @property
    def is_behind(self):
        return self.ratio > 1 and not self.is_noise

    @property
    def is_ahead(self):
        return self.ratio < 1 and not self.is_noise


def spread(values):
    """None where there are too few rounds to show one."""
    if len(values) < ROUNDS_MIN:
        return None
    ordered = sorted(values)
    if len(ordered) >= ROUNDS_TRIMMED:
        ordered = ordered[1:-1]
    return ordered[-1] - ordered[0]


def difference(figure, ours, theirs):
    """Of two lists of records, neither of them empty."""
    a, b = ([figure.of(record) for record in records] for records in (ours, theirs))
    a_median, b_median = statistics.median(a), statistics.median(b)
    spreads = spread(a), spread(b)
    low, high = sorted((a_median, b_median))
    better = high if figure.more_is_better else low
    share = NOISE_SHARE if None not in spreads else NOISE_SHARE_UNKNOWN
    noise = max(
        share * better,
        *(s or 0 for s in spreads),
        *(figure.resolution(record) for record in ours + theirs),
    )
    worse = a_median < b_median if figure.more_is_better else a_median > b_median
    ratio = high / low if low > 0 else (1.0 if high == low else float("inf"))
    return Difference(
        figure,
        a_median,
        b_median,
        *spreads,
        ratio if worse else 1 / ratio,
        high - low <= noise,
    )


def compared(results, ours, theirs):
    """(cell, Difference) for all figures of all cells that both have figures of."""
    return [
        (cell, difference(figure, results.records(cell, ours), results.records(cell, theirs)))
        for cell in results.cells
        if results.records(cell, ours) and results.records(cell, theirs)
        for figure in FIGURES
    ]


def failures(results, name):
    """(cell, what) where a server lost something, or has no figures though it was to have some."""
    found = []
    for cell in results.cells:
        lost = max((wrong(record) for record in results.records(cell, name)), default=0)
        if lost:
            problem = next(
                (r["first_problem"] for r in results.records(cell, name) if r.get("first_problem")),
                None,
            )
            found.append(
                (
                    cell,
                    f"{lost:,} lost, doubled, reordered, changed, unexpected or disconnected"
                    + (f": {problem}" if problem else ""),
                )
            )
        reasons = results.reasons(cell, name)
        if reasons:
            found.append((cell, reasons[-1]))
    return found


def bars(results, ours="ringfeed", theirs="uwebsockets"):
    """(figure, bar, found, met) of the named rows that were measured."""
    rows = []

    def median(cell, name, of):
        records = results.records(cell, name)
        return statistics.median([of(record) for record in records]) if records else None

    def cpu(cell, name):
        return median(cell, name, lambda r: r["user_ns"] + r["system_ns"])

    for cell in results.cells:
        both = results.records(cell, ours) and results.records(cell, theirs)
        if cell in cells.watchlists() and both:
            for figure in FIGURES:
                found = difference(
                    figure, results.records(cell, ours), results.records(cell, theirs)
                )
                value = found.ours / found.theirs if found.theirs else float("inf")
                if figure.title in ("p50", "p99"):
                    if max(found.ours, found.theirs) > 1000:
                        rows.append(
                            (
                                f"{cell.name}: {figure.title}",
                                "<= 0.5 x",
                                f"{value:.2f} x",
                                value <= 0.5,
                            )
                        )
                else:
                    bar = "no fewer" if figure.more_is_better else "no more (aim 0.8 x)"
                    rows.append(
                        (f"{cell.name}: {figure.title}", bar, f"{value:.2f} x", not found.is_behind)
                    )
            user = median(cell, ours, lambda r: r["user_ns"])
            rows.append(
                (f"{cell.name}: user time a delivery", "<= 300 ns", f"{user:.0f} ns", user <= 300)
            )
        if cell in cells.fanout() and cell.rate == 0 and both:
            # Deliveries a second of a core that is busy all the time.
            worth = {
                name: median(cell, name, lambda r: r["rate"] / max(r["busy"], 1e-9))
                for name in (ours, theirs)
            }
            bar = {500: 6, 5_000: 4, 15_000: 3}[cell.conns]
            value = worth[ours] / worth[theirs]
            rows.append(
                (
                    f"{cell.name}: deliveries/s a server core",
                    f">= {bar} x",
                    f"{value:.1f} x",
                    value >= bar,
                )
            )
            user = median(cell, ours, lambda r: r["user_ns"])
            rows.append(
                (f"{cell.name}: user time a delivery", "<= 15 ns", f"{user:.1f} ns", user <= 15)
            )
        if cell in cells.fanout() and cell.rate:
            for name, who, bar in (("floor", "the floor's", 1.05), (theirs, "uWebSockets'", 0.8)):
                if results.records(cell, ours) and results.records(cell, name):
                    value = cpu(cell, ours) / cpu(cell, name)
                    rows.append(
                        (
                            f"{cell.name}: CPU a delivery to {who}",
                            f"<= {bar} x",
                            f"{value:.2f} x",
                            value <= bar,
                        )
                    )
    return rows


def bound_by(results, limits):
    """(cell, names) of runs of which most had one of these limits."""
    found = []
    for cell in results.cells:
        names = [
            name
            for name in results.names
            if 2 * sum(r.get("limit") in limits for r in results.records(cell, name))
            > len(results.records(cell, name))
        ]
        if names:
            found.append((cell, names))
    return found


# Title, what it means, and the limits that runs had.
BOUNDS = (
    (
        "Bound by the generator",
        (
            f"loadgen's connection threads used {BUSY:.0%} of their cores or more, so that the"
            " server may be able to do more, and latencies are the generator's, too:"
        ),
        ("generator", "both"),
    ),
    (
        "Bound by neither",
        (
            "It was as fast as it goes, or publishing fell behind its schedule, and yet both the"
            f" server's core and loadgen's threads had over {1 - BUSY:.0%} to spare: what loadgen"
            " allows to be under way was the limit, or others had these cores:"
        ),
        ("neither",),
    ),
)
