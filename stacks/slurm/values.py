"""The values that sbatch takes: times, memory sizes, names and options, read and refused here, free of ZenML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MINUTE, HOUR, DAY = 60, 3600, 86400
LONGEST_S = 366 * DAY

# What each field may hold. All of them begin with a letter or digit (never "-"), and hold no space, quote, $, `, ; or backslash.
PATTERNS: Mapping[str, tuple[str, str]] = {
    "partition": (r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(,[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", "a partition's name, or several with commas"),
    "account": (r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "an account's name: letters, digits and _ . @ + -"),
    "qos": (r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "the name of a quality of service: letters, digits and _ . + -"),
    "reservation": (r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(,[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", "a reservation's name, or several with commas"),
    "constraint": (r"[A-Za-z0-9_(\[][A-Za-z0-9_.:=@+&|*!,()\[\]-]*", "features joined by & | , with counts as *2 and groups in ( ) [ ]"),
    "gres": (
        r"[A-Za-z0-9_][A-Za-z0-9_./:=+-]*(,[A-Za-z0-9_][A-Za-z0-9_./:=+-]*)*",
        "generic resources such as gpu:a100:4, several with commas",
    ),
    "mail_user": (r"[A-Za-z0-9_][A-Za-z0-9_.%+-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?", "a user's name or one mail address"),
    "module": (r"[A-Za-z0-9_][A-Za-z0-9_.+/@=-]*", "a module's name such as GCC/13.3.0"),
    "login": (r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*", "user@host, or a host that ssh knows"),
}

MAIL_TYPES = ("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80",
              "TIME_LIMIT_50")  # fmt: skip

# sbatch takes any beginning of an option's name that fits only one, so that --arr is --array: `flag` refuses their beginnings too.
OWN_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(
        ("job-name", "output", "error", "open-mode", "chdir", "export", "export-file", "requeue", "no-requeue", "kill-on-invalid-dep",
         "signal", "comment"), "the job script sets it"),
    **dict.fromkeys(("dependency", "parsable", "clusters", "cluster", "begin", "hold"), "the submission decides it"),
    **dict.fromkeys(("array", "wrap", "wait", "test-only", "help", "usage", "version", "quiet", "verbose"),
                    "a step is one job, submitted by this program"),
    **{name: f"use the setting '{name.replace('-', '_')}'" for name in (
        "partition", "account", "qos", "reservation", "constraint", "time", "nodes", "cpus-per-task", "gpus-per-node", "gres",
        "exclusive", "hint", "mail-user", "mail-type")},
    "ntasks": "use the settings 'nodes' and 'tasks_per_node'",
    "ntasks-per-node": "use the setting 'tasks_per_node'",
    "mem": "use the setting 'memory'",
}  # fmt: skip

_KNOWN_LONGER = ("time-min", "mem-per-cpu", "mem-per-gpu", "mem-bind")
_READONLY = ("BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID")
_UNITS_MIB = {
    "B": 2**-20, "KB": 1e3 / 2**20, "MB": 1e6 / 2**20, "GB": 1e9 / 2**20, "TB": 1e12 / 2**20, "PB": 1e15 / 2**20,
    "KIB": 2**-10, "MIB": 1.0, "GIB": 2.0**10, "TIB": 2.0**20, "PIB": 2.0**30, "K": 2**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20,
}  # fmt: skip


def name(field: str, value: str) -> str:
    """`value` where it is what `field` of PATTERNS may hold. Raises ValueError."""
    pattern, meaning = PATTERNS[field]
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} is not {meaning}")
    return value


def seconds(time: str) -> int:
    """Seconds of a time limit in Slurm's own forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises ValueError, also for 0 and over a year."""
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,7})(?::(\d{1,7}))?(?::(\d{1,7}))?", time, re.ASCII)
    if not match:
        raise ValueError(f"{time!r} is not a time: write '90' (minutes), '1:30:00' or '1-12:00:00'")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    scale = (HOUR, MINUTE, 1) if days is not None or len(parts) == 3 else (MINUTE, 1, 0)
    total = int(days or 0) * DAY + sum(part * unit for part, unit in zip(parts, scale, strict=False))
    if not 0 < total <= LONGEST_S:
        raise ValueError(f"{time!r} is not between one second and 366 days")
    return total


def canonical_time(total: int) -> str:
    """D-HH:MM:SS."""
    days, rest = divmod(total, DAY)
    return f"{days}-{rest // HOUR:02}:{rest % HOUR // MINUTE:02}:{rest % MINUTE:02}"


def mebibytes(memory: str) -> int:
    """MiB of "8GB" (decimal, as in ZenML), "8GiB", or "8G" (binary, as in Slurm), rounded up; "0" is 0: all of the node's memory.

    Raises ValueError.
    """
    if memory == "0":
        return 0
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?) ?([A-Za-z]{1,3})", memory, re.ASCII)
    if not match or match.group(2).upper() not in _UNITS_MIB or float(match.group(1)) == 0:
        raise ValueError(f"{memory!r} is not a memory size: write '8GB', '8GiB', '500MB', or '0' for all of the node")
    return max(1, math.ceil(float(match.group(1)) * _UNITS_MIB[match.group(2).upper()]))


def mail_types(value: str) -> str:
    """Slurm's mail events, separated by commas, in capitals. Raises ValueError."""
    chosen = value.upper().split(",")
    if unknown := [one for one in chosen if one not in MAIL_TYPES]:
        raise ValueError(f"{unknown[0]!r} is not a mail event: {', '.join(MAIL_TYPES)}")
    return ",".join(chosen)


def flag(option: str) -> str:
    """A long option of sbatch that has no setting of its own: `--name` or `--name=value`. Raises ValueError."""
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", option, re.DOTALL)
    if not match:
        raise ValueError(f"{option!r} is not a long option: write --name or --name=value")
    given, value = match.groups()
    if given not in _KNOWN_LONGER:
        for own, reason in OWN_OPTIONS.items():
            if own.startswith(given):
                raise ValueError(f"--{given} cannot be given: {reason}")
    if value is not None and (not value.isprintable() or value != value.strip() or not value or re.search(r"[;\"'$`\\]", value)):
        raise ValueError(f"the value of --{given} is empty or holds a character that is not for options: {value!r}")
    return option


def one_line(text: str) -> str:
    """`text` where it is one line without control characters (tabs are fine). Raises ValueError."""
    if not text.replace("\t", " ").isprintable():
        raise ValueError(f"{text!r} holds a line break or a control character: write one line each")
    return text


def path(text: str) -> str:
    """`text` where sbatch can be given it as a path: neither control characters nor backslashes. Raises ValueError."""
    if not text or text != text.strip() or not text.isprintable() or "\\" in text or text.startswith("-"):
        raise ValueError(f"{text!r} is not a path that Slurm takes: no line breaks, control characters, backslashes or - in front")
    return text


def variable(key: str) -> str:
    """The name of an environment variable that bash can set. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key, re.ASCII):
        raise ValueError(f"{key!r} is not the name of an environment variable: letters, digits and _")
    if key in _READONLY:
        raise ValueError(f"{key} cannot be set: bash keeps it for itself")
    return key
