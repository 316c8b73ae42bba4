"""Watch a run on Slurm: a live table with the running steps' logs above it at a terminal, one line a change elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.summary import RUN
from hls_foundry.errors import FoundryError
from stacks.slurm.follow import Follower, StepRow
from stacks.slurm.reasons import explain
from stacks.slurm.states import JobState

LOOK_S = 1.0
"""Seconds between two looks at the logs; how often Slurm is asked is the follower's business."""
FRAMES_PER_S = 2.0
ROOM = 10
"""Lines of the terminal that the table leaves to the logs."""
STYLES = {
    JobState.RUNNING: "cyan",
    JobState.COMPLETING: "cyan",
    JobState.COMPLETED: "green",
    JobState.PENDING: "dim",
    JobState.UNKNOWN: "dim",
}


def watch(follower: Follower, *, stream: TextIO, pause: Callable[[float], None] = time.sleep) -> bool:
    """Show the run on `stream` until its last job has ended. False where Ctrl-C ended the watching: the run goes on.

    A cluster that does not answer is told once, and asked on.
    """
    console = Console(file=stream, highlight=False, soft_wrap=True)
    live = console.is_terminal and not console.is_dumb_terminal
    view = _View(follower, console)
    try:
        with view.live() if live else nullcontext():
            while True:
                rows = view.ask()
                view.print_logs()
                if not live:
                    view.print_changes(rows)
                if follower.finished:
                    return True
                pause(LOOK_S)
    except KeyboardInterrupt:
        console.print(Text(how_to_come_back(follower.plan.run_name)))
        return False


def stream_logs(follower: Follower, *, stream: TextIO, steps: Sequence[str] = (), pause: Callable[[float], None] = time.sleep) -> bool:
    """The logs alone (of `steps`, else of all) as they grow, until the run has ended; False after Ctrl-C."""
    view = _View(follower, Console(file=stream, highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True))
    try:
        while True:
            rows = view.ask()
            view.print_logs(steps)
            if follower.finished or (steps and all(row.state.finished for row in rows if row.step in steps)):
                return True
            pause(LOOK_S)
    except KeyboardInterrupt:
        view.notes.print(Text(how_to_come_back(follower.plan.run_name)))
        return False


def how_to_come_back(run: str) -> str:
    """What a person types who has left a run to itself."""
    return (
        f"run {run} goes on without this terminal\n"
        f"  look at it:   {RUN} status {run}\n"
        f"  its logs:     {RUN} logs {run} --follow\n"
        f"  stop it:      {RUN} stop {run}"
    )


class _View:
    """What has been shown of a run. `notes`: where words about the watching itself go."""

    def __init__(self, follower: Follower, console: Console, notes: Console | None = None) -> None:
        self.follower, self.console, self.notes = follower, console, notes or console
        self.trouble = ""
        self.states: dict[str, tuple[JobState, str, int]] = {}
        self.width = max((len(row.step) for row in follower.last_rows()), default=0)

    def ask(self) -> list[StepRow]:
        """The rows; what keeps Slurm from answering is told once, and again once it has been overcome."""
        try:
            rows = self.follower.rows()
        except FoundryError as error:
            if not self.trouble:
                self.trouble = str(error)
                self.notes.print(Text(f"{error}; the run goes on by itself, still asking", style="yellow"))
            return self.follower.last_rows()
        if self.trouble:
            self.trouble = ""
            self.notes.print(Text("Slurm answers again", style="yellow"))
        return rows

    def print_logs(self, steps: Sequence[str] = ()) -> None:
        """Every line that the logs have grown by, behind its step's name."""
        try:
            news = self.follower.news()
        except (FoundryError, OSError) as error:
            if not self.trouble:
                self.trouble = str(error)
                self.notes.print(Text(f"logs cannot be read ({error}); still trying", style="yellow"))
            return
        for step, text in news:
            if not steps or step in steps:
                for line in text.removesuffix("\n").split("\n"):
                    self.console.print(Text.assemble((f"{step:<{self.width}} │ ", "dim"), Text.from_ansi(settled(line))))

    def print_changes(self, rows: Sequence[StepRow]) -> None:
        """One line for every step whose state is another one."""
        for row in rows:
            seen = (row.state, row.reason, row.restarts)
            if row.state is not JobState.UNKNOWN and self.states.get(row.step) != seen:
                self.states[row.step] = seen
                self.console.print(Text(change(row)))

    def live(self) -> AbstractContextManager[object]:
        """A table at the foot of the terminal; its clock runs in a thread of its own, so a slow answer does not stop it."""
        return Live(get_renderable=self.frame, console=self.console, refresh_per_second=FRAMES_PER_S, transient=True)

    def frame(self) -> RenderableType:
        """The table as it is now, and the unfinished line of the running step's log."""
        rows = self.follower.last_rows()
        table = step_table(rows, height=max(6, self.console.height - ROOM))
        step = self.follower.running_step
        partial = settled(self.follower.partial_line(step)) if step else ""
        foot = [Text(f"not up to date: {self.trouble}", style="yellow", no_wrap=True, overflow="ellipsis")] if self.trouble else []
        if rows and all(row.state.finished for row in rows):
            closing = self.follower.closing_row()
            foot.append(Text(f"closing job {closing.job} {closing.state.value}: it writes how the run ended", style="dim"))
        if partial:
            foot.append(Text.assemble((f"{step} │ ", "dim"), Text.from_ansi(partial), no_wrap=True, overflow="ellipsis"))
        return Group(table, *foot)


def step_table(rows: Sequence[StepRow], *, zenml: Mapping[str, str] | None = None, height: int | None = None) -> Table:
    """One row a step; with `zenml` also ZenML's status of it. No more than `height` rows: then the nearest to what runs now."""
    shown = nearest(rows, height) if height else list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("job", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if zenml is not None:
        table.add_column("ZenML", no_wrap=True)
    table.add_column("reason", overflow="fold")
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("elapsed", justify="right", no_wrap=True)
    table.add_column("starts", justify="right", no_wrap=True)
    for row in shown:
        status = [] if zenml is None else [zenml.get(row.step, "")]
        job, state = str(row.job or ""), Text("" if row.state is JobState.UNKNOWN else row.state.value, style=STYLES.get(row.state, "red"))
        starts = _moment(row.expected_start) if row.expected_start else ""
        table.add_row(row.step, job, state, *status, _why(row), _nodes(row), _elapsed(row), starts)
    if len(shown) < len(rows):
        others = Counter(row.state.value for row in rows if row not in shown)
        told = ", ".join(f"{number} {state}" for state, number in others.items())
        table.caption = f"and {len(rows) - len(shown)} more steps: {told}"
        table.caption_justify = "left"
    return table


def nearest(rows: Sequence[StepRow], height: int) -> list[StepRow]:
    """At most `height` rows in their order: first those that run or went wrong, then those that come next, then those done last."""
    if len(rows) <= height:
        return list(rows)
    waiting = [row for row in rows if row.state in (JobState.PENDING, JobState.UNKNOWN)]
    done = [row for row in reversed(rows) if row.state is JobState.COMPLETED]
    others = [row for row in rows if row not in waiting and row not in done]
    chosen = [*others, *waiting, *done][:height]
    return [row for row in rows if row in chosen]


def unplaced(step: str) -> StepRow:
    """The row of a step without a job: one whose result was cached."""
    return StepRow(step, 0, JobState.UNKNOWN, "", 0, "", 0, None, 0)


def change(row: StepRow) -> str:
    """One line about what a step's job does now."""
    line = f"{row.step}: job {row.job} {row.state.value}"
    if row.state is JobState.RUNNING:
        line += f" on {row.node_list}" if row.node_list else ""
    elif row.state.finished:
        line += f" after {duration(row.elapsed_s)}"
    if why := _why(row):
        line += f", {why}"
    if row.state is JobState.PENDING and row.expected_start:
        line += f", expected to start {_moment(row.expected_start)}"
    return line


def settled(line: str) -> str:
    """A line as a terminal leaves it after its carriage returns: a progress bar's last state."""
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _why(row: StepRow) -> str:
    """The reason in words, and how often Slurm has started the job again."""
    ended = row.state.finished
    quiet = row.state in (JobState.RUNNING, JobState.COMPLETED)
    why = "" if quiet else explain(row.reason, restarts=row.restarts, finished=ended, exit_code=row.exit_code)
    restarted = f"restart {row.restarts}" if row.restarts else ""
    return ", ".join(part for part in (why, restarted) if part)


def _nodes(row: StepRow) -> str:
    return f"{row.nodes} ({row.node_list})" if row.node_list else str(row.nodes or "")


def _elapsed(row: StepRow) -> str:
    return "" if row.state in (JobState.PENDING, JobState.UNKNOWN) else duration(row.elapsed_s)


def _moment(moment: datetime) -> str:
    here = moment.astimezone()
    return here.strftime("%H:%M" if here.date() == datetime.now().astimezone().date() else "%d %b %H:%M")
