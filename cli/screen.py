"""run.py's --help on one screen of 80 × 24: an option a line, commands that belong together on one, none for --help itself."""

from __future__ import annotations

import click

TOGETHER = (
    (("doctor", "fetch"), "Check a stack; fetch chips and weights beforehand."),
    (("status", "logs", "stop"), "Follow runs, and end them."),
    (("dashboard", "report"), "Look at runs: ZenML's pages, or one HTML file a run."),
    (("predict", "endpoints"), "Map a scene; list endpoints, and delete them."),
    (("cluster", "rehearsal"), "Stand-ins of Slurm and of AWS on this machine."),
)
"""Commands, and what they are for together. A command that is in none of these has a line of its own."""


class Screen(click.Group):
    """A group whose options and commands take one line each at most."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The options without their heading, then the commands."""
        records = [record for option in self.params if (record := option.get_help_record(context))]
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_dl(records)
        with formatter.section("Commands (each has --help)"):
            formatter.write_dl(self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(tuple(name for name in names if name in self.commands), said) for names, said in TOGETHER]
        grouped = {name for names, _ in rows for name in names}
        alone = [((name,), command.get_short_help_str(55)) for name, command in self.commands.items() if name not in grouped]
        return [(", ".join(names), said) for names, said in (*rows, *alone) if names]
