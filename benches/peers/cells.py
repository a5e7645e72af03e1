"""What is measured: cells of connections, channels, rates, sizes and interest; presets of them."""

import functools
import math
from dataclasses import dataclass

SATURATED = 0
MESSAGES_MIN = 5


@dataclass(frozen=True)
class Cell:
    """One load. Rates are messages a second over all channels; 0 is as fast as it goes."""

    conns: int
    rate: int
    channels: int = 1
    subscriptions: int = 1
    size_bytes: int = 128
    interest: str = "random"
    burst: int = 1

    @property
    def subscriptions_all(self):
        return self.conns * self.subscriptions

    @property
    def is_drawn(self):
        """Whether there is anything to draw: else every connection is on every channel."""
        return self.subscriptions < self.channels

    @property
    def ground(self):
        """The cell without its rate: what overloads here, overloads at a higher rate, too."""
        return (
            self.conns,
            self.channels,
            self.subscriptions,
            self.size_bytes,
            self.interest,
            self.burst,
        )

    @property
    def receivers(self):
        """Expected receivers of a message, the mean over publications."""
        return self.conns * chance_of_a_match(self.channels, self.subscriptions, self.interest)

    @property
    def offered(self):
        """Deliveries a second that are asked for; 0 where it goes as fast as it can."""
        return self.rate * self.receivers

    @property
    def place(self):
        if self.channels == 1:
            return f"{self.conns:,} on one channel"
        drawn = f", {self.interest}" if self.is_drawn else ""
        return f"{self.conns:,} on {self.subscriptions:,} of {self.channels:,}{drawn}"

    @property
    def pace(self):
        pace = f"{self.rate:,}/s" if self.rate else "saturated"
        return pace + (f" in bursts of {self.burst}" if self.burst > 1 else "")

    @property
    def size(self):
        return f"{self.size_bytes} B" if self.size_bytes < 1024 else f"{self.size_bytes // 1024} KB"

    @property
    def name(self):
        return f"{self.place}, {self.size}, {self.pace}"

    def flags(self):
        """loadgen's."""
        flags = [
            "--conns",
            self.conns,
            "--rate",
            self.rate,
            "--size",
            self.size_bytes,
            "--burst",
            self.burst,
        ]
        if self.channels > 1:
            flags += ["--channels", self.channels, "--subscriptions", self.subscriptions]
        if self.is_drawn:
            flags += ["--interest", self.interest]
        return [str(flag) for flag in flags]

    def seconds(self, seconds):
        """How long it is published: at least so long that there are some messages."""
        return max(seconds, MESSAGES_MIN / self.rate) if self.rate else seconds

    def setup_seconds(self):
        """A guess at opening, subscribing and closing, for estimates of what is left."""
        return 1.2 + self.conns / 12_000 + self.subscriptions_all / 150_000


@functools.cache
def chance_of_a_match(channels, subscriptions, interest):
    """The chance that a message's channel is among those that a connection has drawn.

    `popular` is log-uniform by rank, for messages and subscriptions: the first r of C channels are
    chosen with probability ln(r + 1) / ln(C + 1). A connection draws until it has enough different
    ones: a channel of weight p is among them with probability 1 - exp(-t p), for the t with which
    these sum to the number of subscriptions.
    """
    if subscriptions >= channels:
        return 1.0
    if interest != "popular":
        return subscriptions / channels
    weights = [math.log1p(1 / rank) / math.log(channels + 1) for rank in range(1, channels + 1)]
    low, high = 0.0, 1.0
    while sum(-math.expm1(-high * p) for p in weights) < subscriptions:
        high *= 2
    for _ in range(30):
        t = (low + high) / 2
        if sum(-math.expm1(-t * p) for p in weights) < subscriptions:
            low = t
        else:
            high = t
    return sum(p * -math.expm1(-high * p) for p in weights)


# The grid. Rates are given as deliveries a second, so that cells with few and with many receivers
# ask for the same work.
RECEIVERS = (1, 5, 50, 500, 5_000, 50_000, 100_000)
SUBSCRIPTIONS = (1, 10, 50, 100)
DELIVERIES = (2_000, 20_000, 100_000, 500_000, 2_000_000, SATURATED)
SIZES = (128, 1024, 16384)
# Payload bytes a second beyond which no rate is asked for: half of what a core copies.
BYTES_PER_SECOND_MAX = 2.5e9


def ground(receivers, subscriptions):
    """Connections and channels that give a message drawn at random so many receivers, or None."""
    if receivers >= 50_000:
        if subscriptions == 1:
            return receivers, 1
        return (
            (2 * receivers, 2 * subscriptions)
            if receivers == 50_000 and subscriptions == 10
            else None
        )
    if receivers == 5_000:
        return (5_000, 1) if subscriptions == 1 else (10_000, 2 * subscriptions)
    conns = {1: 1_000, 5: 2_000}.get(receivers, 5_000)
    return conns, conns * subscriptions // receivers


def grid_cell(receivers, subscriptions, deliveries, size_bytes=128, interest="random"):
    """A cell of the grid, or None where there is no such load."""
    at = ground(receivers, subscriptions)
    if at is None or deliveries * size_bytes > BYTES_PER_SECOND_MAX:
        return None
    conns, channels = at
    if interest == "popular" and subscriptions >= channels:
        return None
    match = conns * chance_of_a_match(channels, subscriptions, interest)
    rate = max(1, round(deliveries / match)) if deliveries else SATURATED
    return Cell(conns, rate, channels, subscriptions, size_bytes, interest)


def grid_of(receivers, subscriptions, deliveries, sizes=(128,), interests=("random",)):
    return [
        grid_cell(r, k, d, size, interest)
        for r in receivers
        for k in subscriptions
        for interest in interests
        for size in sizes
        for d in deliveries
    ]


def full():
    """Every combination."""
    return grid_of(RECEIVERS, SUBSCRIPTIONS, DELIVERIES, SIZES, ("random", "popular"))


def grid():
    """Every combination of receivers, channels and rates at 128 B; sizes and popularity in part."""
    ends = (DELIVERIES[0], DELIVERIES[2], SATURATED)
    return (
        grid_of(RECEIVERS, SUBSCRIPTIONS, DELIVERIES)
        + grid_of((5, 50, 500), (10, 50, 100), DELIVERIES[1:], interests=("popular",))
        + grid_of((1, 50, 500, 5_000), (1, 50), ends, SIZES[1:])
    )


def quick():
    """A few cells from everywhere: about five minutes."""
    return [
        grid_cell(*cell)
        for cell in (
            (1, 1, 20_000),
            (1, 50, 100_000),
            (5, 10, 100_000),
            (50, 50, 150_000),
            (50, 50, 500_000),
            (50, 50, SATURATED),
            (50, 10, 500_000, 128, "popular"),
            (500, 100, 500_000),
            (500, 1, SATURATED),
            (5_000, 1, 100_000),
            (5_000, 1, SATURATED),
            (500, 1, 100_000, 1024),
            (50, 50, 100_000, 1024),
            (500, 1, SATURATED, 16384),
        )
    ]


def watchlists():
    """Connections on many channels: drawn uniformly, and by popularity."""
    return [Cell(5_000, rate, 5_000, 50) for rate in (3_000, 10_000, 30_000)] + [
        Cell(2_000, rate, 500, 20, interest="popular") for rate in (200, 2_000, 10_000)
    ]


def fanout():
    """Everybody on one channel: as fast as it goes, and one message at a time."""
    return [Cell(conns, SATURATED) for conns in (500, 5_000, 15_000)] + [Cell(2_000, 100)]


def peers():
    """Fan-out in several shapes and watchlists, for all servers and the floor."""
    return (
        [Cell(2_000, 100), Cell(2_000, 1_000, burst=20)]
        + [Cell(conns, SATURATED) for conns in (500, 5_000, 15_000)]
        + [Cell(500, SATURATED, size_bytes=size) for size in SIZES[1:]]
        + [Cell(500, 6_000)]
        + watchlists()
        + [Cell(5_000, rate, 5_000, 50) for rate in (100_000, SATURATED)]
    )


@dataclass(frozen=True)
class Preset:
    cells: object
    servers: tuple
    rounds: int
    seconds: float
    # More rounds of the cells in which ringfeed is behind.
    confirm: int = 0


PAIR = ("ringfeed", "uwebsockets")
PRESETS = {
    "peers": Preset(
        peers, ("floor", "ringfeed", "ringfeed-epoll", "uwebsockets", "nats", "nchan", "ws"), 5, 3
    ),
    "watchlists": Preset(watchlists, PAIR, 5, 5),
    "fanout": Preset(fanout, ("floor",) + PAIR, 5, 3),
    "quick": Preset(quick, PAIR, 3, 1),
    "grid": Preset(grid, PAIR, 3, 2, 2),
    "full": Preset(full, PAIR, 3, 2, 2),
}


def chosen(preset, only, subscriptions_max):
    """The preset's cells, each once, and those left out with the reason."""
    cells = [cell for cell in dict.fromkeys(PRESETS[preset].cells()) if cell is not None]
    if only:
        cells = [cell for cell in cells if only in cell.name]
    small = [cell for cell in cells if cell.subscriptions_all <= subscriptions_max]
    left_out = {
        cell: (
            f"{cell.subscriptions_all:,} subscriptions; --subscriptions-max is"
            f" {subscriptions_max:,}"
        )
        for cell in cells
        if cell not in small
    }
    return small, left_out
