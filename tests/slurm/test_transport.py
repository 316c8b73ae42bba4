"""The two transports: this machine, and a real sshd on the loopback; both keep the same promises."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from hls_foundry.errors import SlurmError
from stacks.slurm.transport import ConnectionLost, Ended, LocalTransport, SSHTransport, Transport, run_process
from tests.conftest import missing
from tests.slurm.sshd import Server, free_port, running_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(server: Server) -> Iterator[SSHTransport]:
    with SSHTransport(server.login, server.options(), {"SLURM_CONF": "/a path/slurm.conf"}) as transport:
        yield transport


@pytest.fixture(params=["local", "ssh"])
def transport(request: pytest.FixtureRequest) -> Transport:
    if request.param == "local":
        return LocalTransport({"SLURM_CONF": "/a path/slurm.conf"})
    transport: SSHTransport = request.getfixturevalue("ssh")
    return transport


AWKWARD = ["a b", "$HOME", "`id`", "it's", '"quoted"', "back\\slash", "new\nline", "ěšč", "", "*", "-n", "a;b|c&d", "#x", "!1"]


def test_arguments_arrive_as_they_are(transport: Transport) -> None:
    done = transport.run(["printf", "%s\\0", *AWKWARD])
    assert done.stdout.split("\0")[:-1] == AWKWARD
    assert (done.returncode, done.stderr) == (0, "")


def test_environment_exit_code_output_and_input_pass_through(transport: Transport) -> None:
    done = transport.run(["sh", "-c", 'cat; echo "$SLURM_CONF $SLURM_TIME_FORMAT"; echo oops >&2; exit 3'], input=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n/a path/slurm.conf %s\n", "oops\n")
    assert transport.run(["sh", "-c", "echo sbatch: error: Invalid --time specification >&2; exit 255"]).returncode in (254, 255)
    assert transport.run(["cat"]).stdout == "", "no input: not this terminal's either"


def test_variables_that_change_slurms_commands_are_not_passed_on(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    assert "SQUEUE_STATES" not in transport.run(["env"]).stdout


def test_a_command_that_does_not_exist_gives_127(transport: Transport) -> None:
    assert transport.run(["no-such-command", "x"]).returncode == 127


def test_a_command_that_hangs_is_left_after_its_time(transport: Transport) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer in 1 s"):
        transport.run(["sleep", "30"], timeout=1)
    assert time.monotonic() - begin < 5
    assert transport.run(["echo", "still"]).stdout == "still\n"


def test_a_file_is_written_whole_private_and_read_back(transport: Transport, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    path = tmp_path / "new folder" / "it's a file"
    transport.write(path, content)
    assert path.read_bytes() == content == transport.read(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    transport.write(str(path), b"", mode=0o750)
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o750
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"
    assert transport.exists(path)
    assert not transport.exists(tmp_path / "other")


def test_content_never_shows_on_a_command_line(transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def watched(command: Sequence[str], environment: Mapping[str, str], input: bytes | None, timeout: float) -> Ended:
        lines.extend([*command, *environment.values()])
        return run_process(command, environment, input, timeout)

    monkeypatch.setattr("stacks.slurm.transport.run_process", watched)
    transport.write(tmp_path / "secret", b"token-5up3r")
    assert (tmp_path / "secret").read_bytes() == b"token-5up3r"
    assert any("mktemp" in line for line in lines)
    assert not any("5up3r" in line for line in lines)


def test_what_cannot_be_written_is_one_line(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "file" / "below", tmp_path / "folder", Path("/proc/nope")):
        with pytest.raises(SlurmError, match=f"cannot write {path} on .*: check free space") as failed:
            transport.write(path, b"x")
        assert "\n" not in str(failed.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(FileNotFoundError):
        transport.read(tmp_path / "gone")
    with pytest.raises(SlurmError, match="cannot read"):
        transport.read(tmp_path / "folder")


def test_a_full_disk_is_one_line_and_leaves_nothing(transport: Transport, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("not root: cannot mount a full disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        missing("no right to mount a tmpfs")
    try:
        with pytest.raises(SlurmError, match="No space left on device"):
            transport.write(disk / "big", b"x" * 200_000)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_end_of_a_growing_file_is_read(transport: Transport, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert transport.tail(log, 0) == b""
    log.write_bytes(b"one\ntw\xc3")
    assert transport.tail(log, 0) == b"one\ntw\xc3"
    assert transport.tail(log, 4) == b"tw\xc3"
    assert transport.tail(log, 7) == b""
    assert transport.tail(log, 700) == b""


def packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/run.py")
        member.size, member.mode = len(content), 0o755
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_appears_whole_or_not_at_all(transport: Transport, tmp_path: Path) -> None:
    archive = packed(os.urandom(100_000))
    folder = tmp_path / "run" / "code"
    with pytest.raises(SlurmError, match="cannot unpack"):
        transport.unpack(archive[:-5000], folder)
    assert list(folder.parent.iterdir()) == []
    transport.unpack(archive, folder)
    assert (folder / "package" / "run.py").stat().st_size == 100_000
    assert os.access(folder / "package" / "run.py", os.X_OK)
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SlurmError, match="exists already"):
        transport.unpack(archive, folder)
    transport.remove(folder.parent)
    transport.remove(folder.parent)
    assert not folder.parent.exists()


@pytest.mark.parametrize("folder", ["/", "/home", "runs/a", "", "/home/x/../.."])
def test_only_a_folder_deep_enough_is_deleted(folder: str) -> None:
    with pytest.raises(SlurmError, match="will not delete"):
        LocalTransport().remove(folder)


def test_all_commands_share_one_connection_which_close_ends(server: Server) -> None:
    before = server.connections()
    transport = SSHTransport(server.login, server.options())
    for _ in range(5):
        transport.run(["true"])
    assert server.connections() == before + 1
    (socket_path,) = list(transport._folder.iterdir()) if transport._folder else [Path()]
    assert len(str(socket_path)) + 17 < 104
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700
    begin = time.monotonic()
    transport.run(["true"])
    assert time.monotonic() - begin < 1
    transport.close()
    transport.close()
    assert not socket_path.parent.exists()
    transport.run(["true"])
    assert server.connections() == before + 2, "it opens again"
    transport.close()


def test_a_forgotten_transport_ends_its_connection(server: Server) -> None:
    transport = SSHTransport(server.login, server.options())
    transport.run(["true"])
    folder = transport._folder
    assert folder
    assert folder.exists()
    del transport
    assert not folder.exists()


def test_what_keeps_one_from_logging_in_is_one_line(server: Server) -> None:
    cases = [
        (server.login, server.options(known_hosts="no_hosts"), "its host key is unknown: run `ssh "),
        (server.login, server.options(known_hosts="changed_hosts"), "its host key has changed"),
        (server.login, server.options(key="strange_key"), "it asks for a password"),
        (
            server.login,
            [*server.options(key="strange_key"), "-o", "KbdInteractiveAuthentication=no"],
            "asks for a password|permission denied",
        ),
        (server.login, server.options(port=free_port()), "cannot be reached over ssh: .*Connection refused"),
        ("someone@no-such-host.invalid", server.options(), "cannot be reached over ssh: .*resolve"),
        (server.login, ["-o", "NoSuchOption=1"], "refuses an option"),
    ]
    for login, options, words in cases:
        with SSHTransport(login, options) as transport, pytest.raises(SlurmError, match=words) as failed:
            transport.run(["true"])
        assert "\n" not in str(failed.value)
        assert login in str(failed.value)


@pytest.mark.parametrize("login", ["", "-oProxyCommand=x", "user@host;id", "a b", "user@"])
def test_a_login_is_a_name_and_not_an_option(login: str) -> None:
    with pytest.raises(SlurmError, match="is not a login"):
        SSHTransport(login)


def test_a_connection_that_breaks_is_told_as_such(server: Server) -> None:
    def cut() -> None:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
        for child in map(int, children.split()):
            os.kill(child, signal.SIGKILL)

    with SSHTransport(server.login, server.options()) as transport:
        transport.run(["true"])
        threading.Timer(0.5, cut).start()
        with pytest.raises(ConnectionLost, match="cannot be reached over ssh"):
            transport.run(["sleep", "3"], timeout=20)
        assert transport.run(["echo", "again"]).stdout == "again\n"
