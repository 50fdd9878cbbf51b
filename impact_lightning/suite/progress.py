"""Progress: a line for each unit that begins or ends, and how long the rest takes."""

import time
from collections.abc import Collection, Mapping
from datetime import timedelta

from rich.console import Console
from rich.markup import escape

from impact_lightning.suite.estimate import Cost
from impact_lightning.suite.outcome import State
from impact_lightning.suite.plan import Plan

COLOURS = {"done": "green", "failed": "bold red", "skipped": "yellow"}


class Progress:
    """Tells of units as they begin and end.

    Args:
        plan: The plan.
        costs: What each unit is estimated to cost.
        jobs: Units at a time.
        done: Seconds of the units that were done before.
        own: The units that this job does; all of them by default.
    """

    def __init__(
        self,
        plan: Plan,
        costs: Mapping[str, Cost],
        jobs: int,
        done: Mapping[str, float],
        own: Collection[str] | None = None,
    ) -> None:
        self.names = list(plan.works)
        self.costs = costs
        self.jobs = jobs
        self.seconds = dict(done)
        self.ended = set(done)
        self.own = set(self.names if own is None else own)
        self.console = Console(highlight=False)
        self.width = max(map(len, self.names))

    def __call__(self, name: str, state: State, seconds: float) -> None:
        """Print a line about a unit."""
        place = f"{self.names.index(name) + 1:>{len(str(len(self.names)))}}/{len(self.names)}"
        start = f"[dim]{time.strftime('%H:%M:%S')}[/]  {place}  {escape(name):<{self.width}}"
        if state == "waiting":
            self.console.print(f"{start}  [dim]begins[/]")
            return
        self.ended.add(name)
        if state == "done":
            self.seconds[name] = seconds
        left = self.left()
        rest = f"[dim]about {clock(left)} left[/]" if left else ""
        took = "" if state == "skipped" else f" after {clock(seconds)}"
        self.console.print(f"{start}  [{COLOURS[state]}]{state}[/]{took}  {rest}")

    def left(self) -> float:
        """Return the seconds until everything has ended, by how long units took beside their estimates."""
        known = [name for name in self.seconds if self.costs[name].seconds > 0]
        expected = sum(self.costs[name].seconds for name in known)
        pace = sum(self.seconds[name] for name in known) / expected if expected else 1.0
        return pace * sum(self.costs[name].seconds for name in self.own - self.ended) / self.jobs


def clock(seconds: float) -> str:
    """Return a time as people write it."""
    return str(timedelta(seconds=round(seconds))) if seconds >= 3600 else f"{int(seconds) // 60}:{int(seconds) % 60:02}"
