"""What a stack and a step may ask of Slurm, what is refused, and how the two merge."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from zenml.config import ResourceSettings

from hls_foundry.errors import ConfigError
from stacks.slurm import values
from stacks.slurm.settings import COUNTS, NAMES, Resources, SlurmOrchestratorConfig, SlurmSettings, parse_settings, resources_of

NASTY = ["a\nb", "a\n#SBATCH --wrap=id", "a\rb", "a\x00b", "a\x1bb", " a", "a ", "a\t", "a;id", "a'b", 'a"b', "$HOME", "a$(id)",
         "`id`", "-a", "--uid=0", "a\\b", "", "a b", "a\u2028b", "a\u00a0b", "a #b", "a>b", "a\x7f"]  # fmt: skip


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("text", NASTY)
def test_names_that_could_become_something_else_are_refused_in_one_line(field: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"site.yaml: '{field}'") as refused:
        parse_settings({field: text}, "site.yaml")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("partition", "dc-gpu"),
        ("partition", "short,long_2"),
        ("account", "training2401"),
        ("account", "a.b@c+d"),
        ("qos", "high-prio"),
        ("reservation", "maint_1,course"),
        ("constraint", "a&b"),
        ("constraint", "[rack1*2&rack2*4]"),
        ("constraint", "(a|b)&!c"),
        ("gres", "gpu:a100:4"),
        ("gres", "gpu:4,nvme:1"),
        ("mail_user", "me+slurm@site.example.org"),
    ],
)
def test_names_as_sites_use_them_are_taken(field: str, text: str) -> None:
    assert getattr(SlurmSettings(**{field: text}), field) == text


@pytest.mark.parametrize(
    ("given", "seconds", "canonical"),
    [
        ("90", 5400, "0-01:30:00"),
        ("90:30", 5430, "0-01:30:30"),
        ("1:30:00", 5400, "0-01:30:00"),
        ("01:30:00", 5400, "0-01:30:00"),
        ("48:00:00", 172800, "2-00:00:00"),
        ("1-12", 129600, "1-12:00:00"),
        ("1-12:30", 131400, "1-12:30:00"),
        ("1-12:30:05", 131405, "1-12:30:05"),
        ("366-0", 366 * 86400, "366-00:00:00"),
    ],
)
def test_times_mean_what_they_mean_to_slurm(given: str, seconds: int, canonical: str) -> None:
    settings = SlurmSettings(time=given)
    assert (settings.time_s, settings.time) == (seconds, canonical)
    assert SlurmSettings(time=settings.time) == settings


@pytest.mark.parametrize("given", ["", "0", "0:00", "1h", "-1", "1.5", "1:2:3:4", "367-0", "UNLIMITED", "٣", "1 ", "1\n", "9" * 30])
def test_times_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"x: 'time'"):
        parse_settings({"time": given}, "x")


def test_numbers_that_yaml_made_of_a_time_or_an_account_are_refused_with_the_way_to_write_them() -> None:
    for text in ("time: 10:00:00", "account: 0123", "partition: no"):
        with pytest.raises(ConfigError, match="put the value in quotes"):
            parse_settings(yaml.safe_load(text), "x")


@pytest.mark.parametrize(
    ("given", "mib"),
    [
        ("8GB", 7630),
        ("8GiB", 8192),
        ("8G", 8192),
        ("500MB", 477),
        ("500MiB", 500),
        ("1.5GiB", 1536),
        ("1KB", 1),
        ("0", 0),
        (0, 0),
        ("2 TiB", 2097152),
    ],
)
def test_memory_is_rounded_up_to_mebibytes(given: Any, mib: int) -> None:
    assert SlurmSettings(memory=given).memory_mib == mib


@pytest.mark.parametrize("given", ["", "8", "8XB", "-8GB", "8GB;", "0GB", "GB", "8,5GB", 8, False, "8GB\n"])
def test_memory_without_a_unit_or_sense_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"x: 'memory'"):
        parse_settings({"memory": given}, "x")


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"^site.yaml: unknown key 'partiton' \(the nearest known one is 'partition'\)$"):
        parse_settings({"partiton": "x"}, "site.yaml")
    with pytest.raises(ValidationError, match=r"unknown key 'closing_tme' \(the nearest known one is 'closing_time'\)"):
        SlurmOrchestratorConfig(folder="/runs", closing_tme="5")


@pytest.mark.parametrize("field", COUNTS)
def test_counts_are_whole_and_in_range(field: str) -> None:
    for wrong in (-1, 10**6, 1.5, True, "many", "1;id", [1]):
        with pytest.raises(ConfigError, match=f"x: '{field}'"):
            parse_settings({field: wrong}, "x")


OWN = ["--array=0-3", "--arr=0-3", "--ar", "--wrap=id", "--wra=id", "--parsable", "--dependency=singleton", "--depend=x",
       "--output=/x", "--error=/x", "--err=/x", "--open-mode=truncate", "--job-name=x", "--chdir=/", "--export=ALL", "--exp=ALL",
       "--requeue", "--no-requeue", "--kill-on-invalid-dep=no", "--signal=9", "--sig=9", "--partition=x", "--part=x", "--time=1",
       "--mem=1", "--nodes=2", "--ntasks=4", "--nta=4", "--comment=x", "--wait", "--clusters=all", "--test-only",
       "--mail-type=ALL", "--mail-u=x"]  # fmt: skip


@pytest.mark.parametrize("flag", OWN)
def test_options_that_are_the_programs_own_are_refused_even_abbreviated(flag: str) -> None:
    with pytest.raises(ConfigError, match=r"x: 'flags': .* cannot be given: "):
        parse_settings({"flags": [flag]}, "x")


@pytest.mark.parametrize(
    "flag",
    [
        "-N2",
        "-p x",
        "mem-per-cpu=1",
        "--",
        "--x y",
        "--Nice",
        "--nice=\n1",
        "--nice=",
        "--nice= 1",
        "--nice=1;id",
        "--nice=$X",
        "--nice=`id`",
        "--nice='1'",
        "--licenses=a\\b",
    ],
)
def test_flags_that_are_no_plain_long_option_are_refused(flag: str) -> None:
    with pytest.raises(ConfigError, match="x: 'flags'"):
        parse_settings({"flags": [flag]}, "x")


def test_flags_without_a_setting_of_their_own_are_taken() -> None:
    flags = ["--nice=100", "--licenses=matlab:2,other", "--mem-per-cpu=2G", "--time-min=10", "--contiguous", "--switches=1@10:00"]
    assert SlurmSettings(flags=flags).flags == flags


@pytest.mark.parametrize("modules", [["GCC/13 CUDA"], ["-f"], ["a;id"], ["$(id)"], ["a\nb"], ["'a'"], [""]])
def test_modules_are_names_only(modules: list[str]) -> None:
    with pytest.raises(ConfigError, match="x: 'modules'"):
        parse_settings({"modules": modules}, "x")


def test_setup_lines_are_shell_but_one_line_each() -> None:
    assert SlurmSettings(setup=["source /x/activate; ulimit -n 4096"]).setup == ["source /x/activate; ulimit -n 4096"]
    for wrong in (["a\nb"], ["a\0b"], "a line that is no list"):
        with pytest.raises(ConfigError, match="x: 'setup'"):
            parse_settings({"setup": wrong}, "x")


def test_environment_keys_are_names_and_values_one_line_of_text() -> None:
    assert SlurmSettings(environment={"OMP_NUM_THREADS": 4, "A": "$x; `id`"}).environment == {"OMP_NUM_THREADS": "4", "A": "$x; `id`"}
    for wrong in (
        {"a b": "1"},
        {"1a": "1"},
        {"": "1"},
        {"a;id": "1"},
        {"A": "1\n2"},
        {"A": "1\0"},
        {"A": True},
        {"A": None},
        {"UID": "0"},
        {"PYTHONPATH": "/x"},
    ):
        with pytest.raises(ConfigError, match=r"^x: 'environment': \S.*") as refused:
            parse_settings({"environment": wrong}, "x")
        assert "\n" not in str(refused.value)


def test_mail_events_and_hints_are_slurms() -> None:
    assert SlurmSettings(mail_type="end,fail").mail_type == "END,FAIL"
    for wrong in ({"mail_type": "END;FAIL"}, {"mail_type": "SOON"}, {"hint": "fast"}):
        with pytest.raises(ConfigError):
            parse_settings(wrong, "x")


def test_a_step_overrides_what_it_sets_and_nothing_else() -> None:
    stack = SlurmSettings(partition="cpu", time="60", nodes=2, environment={"A": "1", "B": "1"}, setup=["one"], flags=["--nice=1"])
    step = SlurmSettings(time="90", nodes=1, environment={"B": "2"}, setup=["two"], partition=None)
    merged = stack.merged(step)
    assert (merged.time_s, merged.nodes, merged.partition) == (5400, 1, None)
    assert merged.environment == {"A": "1", "B": "2"}
    assert (merged.setup, merged.flags) == (["two"], ["--nice=1"])
    assert stack.merged(None) == stack
    assert stack.merged(SlurmSettings()) == stack


def test_a_clusters_configuration_gives_its_defaults_and_the_closing_jobs_settings() -> None:
    config = SlurmOrchestratorConfig(
        folder="/shared/my runs",
        partition="gpu",
        account="proj",
        reservation="course",
        gres="gpu:4",
        nodes=4,
        modules=["Python"],
        environment={"A": "1"},
    )
    defaults = config.defaults()
    assert type(defaults) is SlurmSettings
    assert (defaults.partition, defaults.nodes, defaults.environment) == ("gpu", 4, {"A": "1"})
    closing = config.closing_settings()
    assert (closing.partition, closing.account, closing.reservation, closing.time_s) == ("gpu", "proj", "course", 600)
    assert (closing.nodes, closing.gres, closing.modules, closing.environment) == (1, None, ["Python"], {"A": "1"})
    assert config.merged(SlurmSettings(nodes=1)).nodes == 1


def test_the_closing_job_may_go_elsewhere() -> None:
    config = SlurmOrchestratorConfig(
        folder="/r", partition="gpu", account="a", reservation="course", constraint="a100", closing_partition="cpu", closing_account="b",
        closing_time="5", closing_qos="small", closing_memory="1GiB",
    )  # fmt: skip
    closing = config.closing_settings()
    assert (closing.partition, closing.account, closing.qos, closing.time_s, closing.memory_mib) == ("cpu", "b", "small", 300, 1024)
    assert (closing.reservation, closing.constraint) == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"folder": "/a\nb"},
        {"folder": "/a\\b"},
        {"folder": ""},
        {"login": "-oProxyCommand=id"},
        {"login": "me@host;id"},
        {"login": "me@host", "folder": "runs"},
        {"login": "me@host"},
        {"closing_time": "0"},
        {"closing_time": 600},
        {"closing_partition": "a b"},
        {"closing_memory": "1"},
        {"poll_s": 0},
        {"ssh_options": ["-o\nx"]},
        {"slurm_conf": "-x"},
        {"python": "a\tb"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SlurmOrchestratorConfig(**{"folder": "/runs", **wrong})


def test_the_configuration_tells_zenml_what_it_needs_to_know() -> None:
    config = SlurmOrchestratorConfig(folder="/runs")
    assert (config.is_synchronous, config.handles_step_retries, config.is_remote, config.is_local, config.is_schedulable) == (
        True,
        True,
        False,
        False,
        False,
    )
    assert not SlurmOrchestratorConfig(folder="/runs", synchronous=False).is_synchronous
    assert SlurmOrchestratorConfig(folder="/runs", login="me@cluster", python="/opt/python").login == "me@cluster"


def test_a_configuration_survives_zenmls_store() -> None:
    config = SlurmOrchestratorConfig(folder="/runs", time="90", memory="8GB", modules=["GCC"], environment={"A": "1"}, closing_time="5")
    assert SlurmOrchestratorConfig(**yaml.safe_load(config.model_dump_json())) == config
    assert SlurmOrchestratorConfig(folder="/runs", modules='["GCC"]', environment='{"A": "1"}').modules == ["GCC"]


def test_zenmls_resources_are_those_of_a_node() -> None:
    assert resources_of(ResourceSettings()) == Resources()
    assert resources_of(ResourceSettings(cpu_count=2.5, gpu_count=4, memory="8GB")) == Resources(cpus=2.5, gpus=4, memory_mib=7630)
    with pytest.raises(ConfigError, match="'memory': '0GB'"):
        resources_of(ResourceSettings(memory="0GB"))
    for unit in ("KB", "KiB", "MB", "MiB", "GB", "GiB", "TB", "TiB", "PB", "PiB"):
        settings = ResourceSettings(memory=f"3{unit}")
        expected = settings.get_memory(unit="MiB")
        assert expected is not None
        assert 0 <= values.mebibytes(f"3{unit}") - expected < 1
