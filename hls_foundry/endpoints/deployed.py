"""What every deployed endpoint says of itself, wherever it runs: for artifacts, summaries and lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Deployed(ABC):
    """A deployed endpoint. Subclasses give `target` and `kind` their values, so results that were stored without them still load."""

    name: str
    url: str  # where POST requests go
    model_version: str  # of several models: "TASK=VERSION TASK=VERSION"
    sha256: str  # of what was deployed
    since: str  # ISO 8601 UTC
    target: str  # local, container or sagemaker
    kind: str  # realtime, multi_model, async or serverless

    @property
    @abstractmethod
    def state(self) -> str:
        """In a word or two, as the list shows it."""

    @abstractmethod
    def calls(self, run: str, option: str = "") -> list[tuple[str, str]]:
        """Ways to call it: a word for each, and the command. `run`, `option`: see `commands`."""

    def line(self) -> str:
        """One line for a list: name, address, state, model version, since when."""
        return f"{self.name:<16} {self.url}  {self.state}  version {self.model_version}  since {self.since}"

    def commands(self, run: str, option: str = "", shell: str = "") -> list[str]:
        """How to call it and how to delete it, one line each.

        `run`: how run.py is started; `option`: what its commands need to reach the endpoint, such as --rehearse; `shell`: what a shell has
        to do first for the commands of others.
        """
        where, more = " --stack aws" if self.target == "sagemaker" else "", f" {option}" if option else ""
        by_run, *others = self.calls(run, option)
        lines = [by_run, *([("shell", shell)] if shell else []), *others, ("delete", f"{run} endpoints{where}{more} --delete {self.name}")]
        width = max(len(word) for word, _ in lines) + 2
        return [f"{word + ':':<{width}}{command}" for word, command in lines]
