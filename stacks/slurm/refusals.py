"""Why sbatch refuses a job, in one line that names the value and says what to do: a pure function of its words and the script."""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFUSALS: tuple[tuple[str, str], ...] = (
    # {name}: what the script asks for with --name; the first match wins
    (r"Invalid --(?P<option>[\w-]+) specification|[Uu]nrecognized option '--(?P<other>[\w-]+)", ""),
    (r"Invalid partition name|invalid partition specified", "no partition {partition}: `sinfo -s` lists those of this cluster"),
    (
        r"Invalid account or account/partition|Invalid account",
        "account {account} may not be used in partition {partition}: `sacctmgr show associations user=$USER` lists yours",
    ),
    (r"group not permitted to use this partition", "partition {partition} is not open to you or to account {account}: choose another"),
    (r"Invalid qos|Invalid QOS", "QOS {qos} does not exist, or account {account} may not use it: choose another, or leave qos out"),
    (r"(?P<limit>(QOS|Assoc)Max\w*Submit\w*)", "limit of queued jobs reached ({limit}): wait until some have ended"),
    (
        r"Job violates accounting/QOS policy|Job violates QOS policy",
        "the limits of account {account} and QOS {qos} do not allow it: ask for less",
    ),
    (
        r"Requested time limit is invalid|time limit is invalid",
        "time limit {time} is more than partition {partition} allows: ask for less, or choose another partition",
    ),
    (
        r"Memory specification can not be satisfied",
        "no node of partition {partition} has the memory asked for ({mem}): ask for less, or choose another partition",
    ),
    (r"Invalid generic resource", "no node has the gres asked for ({gres}): `sinfo -o '%P %G'` lists what there is"),
    (r"Invalid feature specification", "no node has feature {constraint}: `sinfo -o '%P %f'` lists what there is"),
    (
        r"Requested reservation is invalid|Invalid reservation",
        "no reservation {reservation} for you now: `scontrol show reservation` lists them",
    ),
    (r"Invalid node name", "a node named in the flags does not exist: `sinfo -N` lists them"),
    (
        r"Requested node configuration is not available|Node count specification invalid|More processors requested"
        r"|Requested partition configuration not available",
        "no node of partition {partition} is like this ({shape}): ask for less, or choose another partition",
    ),
    (r"Job dependency problem", "the job that it is to follow is not known: submit the run again"),
    (r"Unable to open file", "sbatch cannot read it: is the folder on the shared file system?"),
    (r"error writing script|No space left", "no space left in the controller's spool: tell the site"),
)
_SHORT = {
    "-p": "--partition",
    "-A": "--account",
    "-q": "--qos",
    "-t": "--time",
    "-N": "--nodes",
    "-c": "--cpus-per-task",
    "-C": "--constraint",
}
_SHAPE = ("nodes", "ntasks-per-node", "cpus-per-task", "mem", "gpus-per-node", "gres", "constraint")


def refusal(said: str, options: Mapping[str, str]) -> str:
    """What is wrong and what to do. `said`: sbatch's stderr; `options`: the script's, by long name without dashes."""
    for pattern, words in _REFUSALS:
        if found := re.search(pattern, said):
            parts = found.groupdict()
            option = parts.get("option") or parts.get("other")
            if option:
                return f"{option} = {options.get(option, '?')} is not what --{option} of sbatch takes: correct it in the stack file"
            shape = ", ".join(f"{name} {options[name]}" for name in _SHAPE if name in options) or "one node"
            names = re.findall(r"{(\w+)}", words)
            known = {name: f"'{options[name]}'" if name in options else "(the default)" for name in names}
            return words.format(**{**known, "shape": shape, "limit": parts.get("limit", "")})
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in said.splitlines()]
    return "; ".join(line for line in lines if line) or "sbatch does not say why: try it by hand"


def script_options(script: str) -> dict[str, str]:
    """The script's #SBATCH options by long name without dashes; "" for one without a value."""
    options: dict[str, str] = {}
    for line in script.splitlines():
        if found := re.match(r"#SBATCH\s+(-{1,2}[\w-]+)(?:[=\s]\s*(.*?))?\s*$", line):
            options[_SHORT.get(found[1], found[1]).lstrip("-")] = (found[2] or "").strip("'\"")
    return options
