"""Computes the machines for a number of vendors and customers from measured costs: `python -m loadtest capacity`. Pure.

The costs are of one core of the machine of docs/scaling.md. Measure them on yours and pass them in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from typer import Option

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost per unit. CPU is µs of a core, sizes are bytes."""

    cost_ping: float = 60.0
    """A single ping from socket to ack in a server: 52 to 62 at 8,000 a second (measured)."""
    cost_publish: float = 1.0
    """A fix encoded for the other processes (measured)."""
    cost_hear: float = 0.9
    """A fix received from another process and merged (measured)."""
    cost_frame: float = 10.0
    """A frame to a customer: 8 to 12 for one send (measured)."""
    cost_position: float = 0.25
    """A position within a frame (measured)."""
    cost_vendor: int = 8_600
    cost_customer: int = 6_400
    """Resident memory of a connection (measured)."""
    cost_process: int = 130_000_000
    """Resident memory of a process without clients (measured)."""
    cost_redis: float = 3.0
    """A fix in Redis, stored and published: 1.4 to 10, less the more there are in a batch (measured)."""
    cost_fix: int = 71
    """A fix on the wire between processes (measured)."""
    cost_rows: float = 140_000
    """Rows a second that one PostgreSQL commits (measured, two cores); an updated position counts as a row."""
    cost_row: int = 277
    """A row of locations on disk with its indexes (measured)."""
    cost_wal: int = 530
    """Write-ahead log of a row in small batches (measured)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The load at the peak, and the requirements on the machines."""

    vendors: Annotated[int, Option()]
    """Vendors online."""
    customers: Annotated[int, Option()]
    """Customers with the map open."""
    moving: float = 0.1
    """Share of the vendors that move."""
    moving_every: float = 2.0
    parked_every: float = 60.0
    """Seconds between two pings of a vendor that moves, of one that is parked."""
    in_view: float = 30.0
    """Vendors on a customer's map."""
    regions: int = 1
    """Groups of processes, each for a part of the country: a process receives its own region only."""
    busy: float = 0.55
    """Share of a core that a process may use at the peak: the rest is a reserve for the failure of another process."""
    memory: int = 1_500_000_000
    """Maximum memory of a process, bytes."""
    position_every: float = 2.0
    """Seconds over which the server merges positions for vendors.lat and long."""
    frames: float = 5.9
    """Most frames a second to one customer."""
    admission: float = 300.0
    """Clients a second that a process admits."""


class Need:
    """What a plan needs at the peak; ValueError when a process would be busy with the others' fixes alone."""

    def __init__(self, plan: Plan, measured: Costs | None = None) -> None:
        measured = measured or Costs()
        per_vendor = plan.moving / plan.moving_every + (1 - plan.moving) / plan.parked_every
        changes = plan.in_view * per_vendor
        self.pings = plan.vendors * per_vendor
        self.frames = plan.customers * min(changes, plan.frames)
        self.deliveries = plan.customers * changes
        received = self.pings / plan.regions
        self.hearing = received * measured.cost_hear / 1e6
        """Share of a core that each process spends on messages of others."""
        if self.hearing >= plan.busy:
            raise ValueError(
                f"each process would receive {received:,.0f} fixes a second, {self.hearing:.0%} of a core: "
                "more regions are needed"
            )
        publishing, sending = measured.cost_ping + measured.cost_publish, self.frames * measured.cost_frame
        work = (self.pings * publishing + sending + self.deliveries * measured.cost_position) / 1e6
        memory = plan.vendors * measured.cost_vendor + plan.customers * measured.cost_customer
        by_work, by_memory = work / (plan.busy - self.hearing), memory / (plan.memory - measured.cost_process)
        self.processes = max(math.ceil(by_work), math.ceil(by_memory), 2 * plan.regions)
        clients = plan.vendors + plan.customers
        self.clients_per_process = clients / self.processes
        self.back_in = clients / (self.processes * plan.admission)
        """Seconds until all clients are back after all were cut off at once."""
        self.redis_cores = self.pings * measured.cost_redis / 1e6
        self.redis_out = self.pings * measured.cost_fix * self.processes / plan.regions
        """Bytes a second from Redis to the processes."""
        # Positions of vendors that move are merged; one that is parked sends seldom and each of its pings is written.
        moving = plan.vendors * plan.moving
        updates = moving / max(plan.moving_every, plan.position_every) + (plan.vendors - moving) / plan.parked_every
        self.rows = self.pings + updates
        self.postgres = self.rows / measured.cost_rows
        """PostgreSQLs for that many rows."""
        self.disk_per_day = self.pings * measured.cost_row * DAY
        self.wal = self.pings * measured.cost_wal
        """Bytes a second of write-ahead log, per replica once over the network."""


def table(plan: Plan, found: Need) -> list[str]:
    """Returns the need as lines of a Markdown table."""
    values = [
        ("vendors online, customers watching", f"{plan.vendors:,}, {plan.customers:,}"),
        ("pings stored a second", f"{found.pings:,.0f}"),
        ("frames, positions to customers a second", f"{found.frames:,.0f}, {found.deliveries:,.0f}"),
        ("regions, processes (a core each)", f"{plan.regions}, {found.processes}"),
        ("clients of a process", f"{found.clients_per_process:,.0f}"),
        ("share of its core for receiving from the others", f"{found.hearing:.0%}"),
        ("cores of Redis; from Redis to the processes", f"{found.redis_cores:.2f}; {found.redis_out / 1e6:,.0f} MB/s"),
        ("rows written a second; PostgreSQLs for it", f"{found.rows:,.0f}; {found.postgres:.2f}"),
        ("history; write-ahead log", f"{found.disk_per_day / 1e9:,.0f} GB a day; {found.wal / 1e6:,.1f} MB/s"),
        ("all clients back after all were cut off", f"{found.back_in:,.0f} s"),
    ]
    return [f"| {name} | {value} |" for name, value in values]
