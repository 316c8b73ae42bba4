"""What Slurm prints, read: texts that Slurm 22.05.8 with slurmdbd printed, since no cluster of the tests keeps accounting."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from stacks.slurm.records import (
    cpu_time,
    duration,
    exit_status,
    read_accounting,
    read_associations,
    read_nodes,
    read_partitions,
    size_bytes,
)
from stacks.slurm.states import JobState

# sacct --duplicates of a job that ran once, one that was requeued, one that was cancelled; "|" for the unit separator
ACCOUNTING = """\
1|COMPLETED|0:0|1795421949|1795421952|1795421958|6|1|n1|debug|ok|1795421949|1|5|00:00.067||hls #abc
1.batch|COMPLETED|0:0|1795421952|1795421952|1795421958|6|1|n1||batch|1795421952|1||00:00.012|3320K|
1.0|COMPLETED|0:0|1795421952|1795421952|1795421952|0|1|n1||sh|1795421952|1||00:00.054||
2|REQUEUED|0:0|1795421949|1795421952|1795421953|1|1|n1|debug|requeued|1795421949|1|UNLIMITED|00:00.001||
2.batch|CANCELLED|0:15|1795421952|1795421952|1795421953|1|1|n1||batch|1795421952|1||00:00.001||
2|COMPLETED|0:0|1795421953|1795421964|1795421989|25|1|n1|debug|requeued|1795421964|1|60|00:00.003||
2.batch|COMPLETED|0:0|1795421964|1795421964|1795421989|25|1|n1||batch|1795421964|1||00:00.003|3112K|
3|CANCELLED by 1000|0:0|1795421949|Unknown|1795421953|0|2|None assigned|debug|never|Unknown|2|60|00:00:00||
"""


def test_runs_of_a_requeued_job_are_summed() -> None:
    jobs = read_accounting(ACCOUNTING.replace("|", "\x1f"))
    assert sorted(jobs) == [1, 2, 3]
    once, again, never = jobs[1], jobs[2], jobs[3]
    assert (once.restarts, once.elapsed_s, once.cpu_seconds, once.max_rss_bytes) == (0, 6, 0.067, 3320 * 1024)
    assert (once.time_limit_s, once.comment, once.cpus, once.node_list) == (300, "hls #abc", 1, "n1")
    assert (again.restarts, again.elapsed_s, again.cpu_seconds, again.max_rss_bytes) == (1, 26, 0.004, 3112 * 1024)
    assert again.state is JobState.COMPLETED
    assert again.submitted == datetime.fromtimestamp(1795421949, UTC), "of the first run"
    assert (never.state, never.started, never.reason) == (JobState.CANCELLED, None, "cancelled by user id 1000")


def test_an_older_job_with_the_same_id_is_not_a_restart() -> None:
    older = "2|FAILED|1:0|1695421949|1695421952|1695421953|900|1|n1|debug|something else|1695421949|1|60|10:00.000||\n"
    job = read_accounting((older + ACCOUNTING).replace("|", "\x1f"))[2]
    assert (job.restarts, job.elapsed_s) == (1, 26)


def test_partitions_have_limits_or_none() -> None:
    limited, free = read_partitions(
        "PartitionName=dc-gpu AllowAccounts=chem,earth AllowQos=ALL Default=YES MaxNodes=24 MaxTime=1-00:00:00 "
        "State=UP TotalCPUs=24576 TotalNodes=192\n"
        "PartitionName=dev AllowAccounts=ALL AllowQos=ALL Default=NO MaxNodes=UNLIMITED "
        "MaxTime=UNLIMITED State=DOWN TotalCPUs=4 TotalNodes=2\n"
    )
    assert (limited.name, limited.default, limited.up, limited.nodes, limited.cpus) == ("dc-gpu", True, True, 192, 24576)
    assert (limited.max_nodes, limited.max_time_s, limited.accounts, limited.qos) == (24, 86400, ("chem", "earth"), None)
    assert (free.max_nodes, free.max_time_s, free.accounts, free.up) == (None, None, None, False)


def test_a_node_of_two_partitions_is_one_node() -> None:
    lines = ["n1|batch*|down*|128|1024|gpu:a100:4|fast,new|Not responding", "n1|urgent|down*|128|1024|gpu:a100:4|fast,new|Not responding"]
    (node,) = read_nodes("\n".join(lines).replace("|", "\x1f"))
    assert (node.state, node.responding, node.partitions) == ("down", False, ("batch", "urgent"))
    assert (node.memory_bytes, node.gres, node.features, node.reason) == (2**30, "gpu:a100:4", ("fast", "new"), "Not responding")


def test_associations_name_account_partition_and_qos() -> None:
    (found,) = read_associations("earth|dc-gpu|normal,long\n")
    assert (found.account, found.partition, found.qos) == ("earth", "dc-gpu", ("normal", "long"))


@pytest.mark.parametrize(("text", "seconds"), [("0:00", 0), ("1-02:03:04", 93784), ("02:03:04", 7384), ("UNLIMITED", None), ("", None)])
def test_durations(text: str, seconds: int | None) -> None:
    assert duration(text) == seconds


def test_sizes_cpu_times_and_wait_statuses() -> None:
    assert [size_bytes(text) for text in ("3320K", "1.5G", "12", "")] == [3399680, 1610612736, 12, None]
    assert [cpu_time(text) for text in ("00:00.067", "1-00:00:01", "")] == [0.067, 86401, None]
    assert [exit_status(text) for text in ("3:0", "0:15", "768", "9", "0")] == [(3, 0), (0, 15), (3, 0), (0, 9), (0, 0)]
