"""Run the course as its reader would: each command of each chapter as written, in order, and hold what comes out against the page.

    .venv/bin/python docs/run_course.py [CHAPTER.md …]      # or: make course

Fenced blocks of a chapter, by the words after the backticks:

    bash [exit=N] [needs=PROGRAM] [without=PROGRAM]   runs in the chapter's one shell; every line must succeed (or the last end with N)
    python [needs=…]                                  runs as a program of its own
    text output [numbers=any | numbers=P%]            its lines must be among those that the block before it printed, in this order

`…` in an output line stands for anything, a line `…` for any lines. All chapters share one new HOME; nothing of yours is used or changed.
A program that is not there skips the blocks that need it; HLS_REQUIRE=all makes that a failure, but for `optional=PROGRAM`.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "docs" / "course"
FENCE = re.compile(r"^```(.*)$")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
TIMEOUT_S = 900
FOREIGN = ("HLS_", "AWS_", "ZENML_", "SLURM_", "SAGEMAKER_", "SM_")
"""Variables of the caller that would change what a command does."""


@dataclass(frozen=True)
class Block:
    """One fenced block: `kind` and `options` are its info string, `line` counts from 1 to its fence."""

    kind: str
    options: tuple[str, ...]
    text: str
    line: int

    def option(self, name: str) -> str | None:
        """The value of NAME=VALUE, None where it is not given."""
        return next((value for key, _, value in (option.partition("=") for option in self.options) if key == name), None)

    @property
    def is_output(self) -> bool:
        return self.kind == "text" and "output" in self.options

    @property
    def runs(self) -> bool:
        return self.kind in ("bash", "python")


@dataclass
class Outcome:
    """What running one chapter came to; `problems` are lines for a person, empty where all is as the page says."""

    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    ran: int = 0


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order. Raises ValueError for a fence that is not closed."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number, fence[1]), []
        elif opened is not None and fence:
            kind, *options = opened[1].split() or [""]
            found.append(Block(kind, tuple(options), "\n".join(lines) + "\n", opened[0]))
            opened = None
        elif opened is not None:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"line {opened[0]}: the fence is not closed")
    return found


def unmatched(expected: str, printed: str, numbers: str | None = None) -> str | None:
    """The first line of `expected` that does not follow in `printed`, None where all do.

    `numbers`: None (as they are), "any", or "P%": how far a number may be from the one on the page.
    """
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    for wanted in expected.splitlines():
        wanted = " ".join(wanted.split())
        if wanted in ("", "…"):
            continue
        if not any(_same(wanted, line, numbers) for line in lines):
            return wanted
    return None


def _same(wanted: str, line: str, numbers: str | None) -> bool:
    pattern = ".*".join(_literal(part, numbers) for part in wanted.split("…"))
    match = re.fullmatch(pattern, line)
    if match is None or numbers in (None, "any"):
        return match is not None
    tolerance = float(numbers.rstrip("%")) / 100
    pairs = zip(NUMBER.findall(wanted), match.groups(), strict=True)
    return all(abs(_value(one) - _value(other)) <= tolerance * max(_value(one), 1e-9) for one, other in pairs)


def _literal(part: str, numbers: str | None) -> str:
    if numbers is None:
        return re.escape(part)
    return f"({NUMBER.pattern})".join(re.escape(piece) for piece in NUMBER.split(part))


def _value(number: str) -> float:
    return float(number.replace(",", ""))


class Shell:
    """One bash, as a reader has it open for a chapter. A context manager: what it left running ends with it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._output, self._script = folder / "output", folder / "block"
        self._reports, reporting = os.pipe()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE, cwd=ROOT, env=environment, pass_fds=(reporting,), start_new_session=True,
        )  # fmt: skip
        os.close(reporting)
        self._say(f"exec 9>&{reporting} {reporting}>&-; set -o pipefail")

    def run(self, script: str, timeout: float) -> tuple[int, str]:
        """Exit code (of the first line that failed, else of the last) and output of a block. Raises TimeoutError."""
        self._script.write_text(script, encoding="utf-8")
        source = f"source {self._script} </dev/null >{self._output} 2>&1 9>&-"
        self._say(f"failed=0; trap 'failed=$?' ERR; {source}; trap - ERR; echo $failed >&9")
        ready, _, _ = select.select([self._reports], [], [], timeout)
        printed = self._output.read_text(encoding="utf-8", errors="replace") if self._output.exists() else ""
        if not ready:
            raise TimeoutError(printed)
        report = os.read(self._reports, 64)
        return (int(report) if report.strip() else -1), printed

    def _say(self, line: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{line}\n".encode())
        self._bash.stdin.flush()

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._bash.stdin is not None
        os.killpg(self._bash.pid, signal.SIGTERM)  # with what it started in the background
        self._bash.stdin.close()
        try:
            self._bash.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
        os.close(self._reports)


def run_chapter(page: Path, shell: Shell, *, timeout: float = TIMEOUT_S) -> Outcome:
    """Run the blocks of one page in `shell`; stops at the first block that fails, since later ones build on it."""
    outcome, printed = Outcome(), None
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{block.line}"
        if block.is_output:
            if printed is not None and (line := unmatched(block.text, printed, block.option("numbers"))) is not None:
                outcome.problems.append(f"{where}: not printed (in this order): {line}")
            continue
        if not block.runs:
            continue
        printed = None
        if reason := _lacks(block):
            outcome.skipped.append(f"{where}: {reason}")
            continue
        started = time.monotonic()
        print(f"\n── {where}\n{block.text.rstrip()}", flush=True)
        try:
            code, printed = shell.run(_command(block), timeout)
        except TimeoutError as late:
            outcome.problems.append(f"{where}: has not ended after {timeout:g} s")
            print(str(late))
            return outcome
        outcome.ran += 1
        print(f"{printed.rstrip()}\n── {time.monotonic() - started:.1f} s", flush=True)
        if code != int(block.option("exit") or 0):
            outcome.problems.append(f"{where}: ended with {code}, not {block.option('exit') or 0}")
            return outcome
    return outcome


def _command(block: Block) -> str:
    if block.kind == "bash":
        return block.text
    return f".venv/bin/python - <<'END-OF-PROGRAM'\n{block.text}END-OF-PROGRAM\n"


def _lacks(block: Block) -> str | None:
    """Why this block does not run on this machine, None where it does."""
    for name in ("needs", "optional"):
        program = block.option(name)
        if program and shutil.which(program) is None:
            return f"no {program} on the PATH" + ("" if name == "needs" else " (optional)")
    program = block.option("without")
    return f"{program} is there (optional)" if program and shutil.which(program) else None


def chapters(names: Sequence[str] = ()) -> list[Path]:
    """The chapters' pages in order, or those named."""
    return [Path(name).resolve() for name in names] if names else sorted(COURSE.glob("[0-9]-*.md"))


def environment(home: Path) -> dict[str, str]:
    """The caller's, without what would change the commands, with `home` as HOME and nothing sent to ZenML's analytics."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"HOME": str(home), "ZENML_ANALYTICS_OPT_IN": "false", "COLUMNS": "140", "NO_COLOR": "1"}


def _clean_up(variables: dict[str, str], home: Path) -> None:
    """What a chapter that failed half-way left running. Each of these says so where there is nothing."""
    variables = variables | {"HLS_FOUNDRY_HOME": str(home / "hls-course"), "ZENML_CONFIG_PATH": str(home / "hls-course" / "zenml")}
    for command in ("endpoints --delete burn_scars", "endpoints --delete flood", "cluster down", "rehearsal down"):
        subprocess.run([".venv/bin/python", "run.py", *command.split()], cwd=ROOT, env=variables, capture_output=True, check=False)


def _run_all(pages: Sequence[Path], home: Path) -> Iterator[tuple[Path, Outcome, float]]:
    variables = environment(home)
    scratch = home / ".course"
    scratch.mkdir()
    try:
        for page in pages:
            started = time.monotonic()
            with Shell(scratch, variables) as shell:
                outcome = run_chapter(page, shell)
            yield page, outcome, time.monotonic() - started
            if outcome.problems:
                return
    finally:
        _clean_up(variables, home)


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 where every block did as its page says."""
    failed = False
    lines = []
    # Not below the checkout: HOME holds chips and runs, and a run on Slurm freezes the checkout.
    with tempfile.TemporaryDirectory(prefix="hls-course-", ignore_cleanup_errors=True) as home:
        for page, outcome, seconds in _run_all(chapters(arguments), Path(home)):
            required = os.environ.get("HLS_REQUIRE") == "all"
            problems = [*outcome.problems, *(line for line in outcome.skipped if required and "(optional)" not in line)]
            lines += [f"{page.name}: {outcome.ran} blocks ran, {len(outcome.skipped)} skipped, {len(problems)} problems, {seconds:.0f} s"]
            lines += [f"  skipped {line}" for line in outcome.skipped]
            lines += [f"  PROBLEM {line}" for line in problems]
            failed |= bool(problems)
    print("\n" + "\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is cleaned up
    sys.exit(main(sys.argv[1:]))
