"""What the harness tells an SSH server, with a server that is curious."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from harness.errors import GuestLost
from harness.guest.keys import Identity
from harness.guest.ssh import OUTPUT_LIMIT, CommandTimeout, Ssh


class Curious(paramiko.ServerInterface):
    """Notes what it is offered; takes one key."""

    def __init__(self, accepted: paramiko.PKey | None = None) -> None:
        self.accepted = accepted
        self.offered: list[str] = []
        self.asked: list[str] = []
        self.command = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password,keyboard-interactive,hostbased,gssapi-with-mic"

    def check_auth_none(self, username: str) -> int:
        return self._refuse("none")

    def check_auth_password(self, username: str, password: str) -> int:
        return self._refuse("password")

    def check_auth_interactive(self, username: str, submethods: str) -> int:
        return self._refuse("keyboard-interactive")

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.offered.append(key.get_base64())
        return AUTH_SUCCESSFUL if key == self.accepted else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.asked.append(kind)
        return OPEN_SUCCEEDED

    def check_channel_forward_agent_request(self, channel: paramiko.Channel) -> bool:
        self.asked.append("agent")
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.command.set()
        return True

    def _refuse(self, what: str) -> int:
        self.asked.append(what)
        return AUTH_FAILED


@contextlib.contextmanager
def served(server: Curious, key: paramiko.PKey) -> Iterator[tuple[int, list[paramiko.Transport]]]:
    """Serve one connection after the other on a port of the loopback."""
    transports: list[paramiko.Transport] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(listener.accept()[0])
                transports.append(transport)
                transport.add_server_key(key)
                transport.start_server(server=server)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], transports
        for transport in transports:
            transport.close()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """A user with keys, a configuration that starts a program, and an agent that listens."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key = Identity.generate()
    for name in ("id_ed25519", "id_rsa"):
        (home / ".ssh" / name).write_text(key.client_private)
        (home / ".ssh" / name).chmod(0o600)
    proof = tmp_path / "proof"
    (home / ".ssh" / "config").write_text(
        f"Host *\n ForwardAgent yes\n ProxyCommand touch {proof}\n IdentityFile ~/.ssh/id_rsa\n"
    )
    monkeypatch.setenv("HOME", str(home))
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    agent.accept()[0].close()
                    asked.append("agent")

        threading.Thread(target=hang_up, daemon=True).start()
        yield {"asked": asked, "proof": proof}
        agent.shutdown(socket.SHUT_RDWR)


def untouched(user: dict[str, object]) -> bool:
    proof = user["proof"]
    assert isinstance(proof, Path)
    return not user["asked"] and not proof.exists()


def test_a_guest_is_offered_the_runs_key_and_nothing_of_the_users(
    user: dict[str, object],
) -> None:
    identity = Identity.generate()
    server = Curious()
    with served(server, identity.host_key) as (port, _):
        ssh = Ssh(port, identity, check=lambda: None)
        with pytest.raises(GuestLost, match="SSH to the guest fails"):
            ssh.connect(30)
        assert not ssh.connected
    assert server.offered == [identity.client_key.get_base64()]
    assert set(server.asked) <= {"none"}
    assert untouched(user)


def test_a_guest_that_lets_in_gets_no_agent(user: dict[str, object]) -> None:
    identity = Identity.generate()
    server = Curious(accepted=identity.client_key)
    with served(server, identity.host_key) as (port, transports):
        ssh = Ssh(port, identity, check=lambda: None)
        ssh.connect(30)

        def answer() -> None:
            server.command.wait(30)
            channel = transports[0].accept(30)
            assert channel is not None
            channel.sendall(b"A" * 1000 + b"\x1b[2J\x00" + b"B" * (OUTPUT_LIMIT + 100_000))
            channel.sendall_stderr(b"C" * 100)
            channel.send_exit_status(3)
            channel.close()

        threading.Thread(target=answer, daemon=True).start()
        done = ssh.run("true", timeout=60)
        ssh.close()
    assert done.status == 3
    assert len(done.stdout) == OUTPUT_LIMIT
    assert "agent" not in server.asked
    assert untouched(user)


def test_another_host_key_is_refused_before_a_key_is_offered(user: dict[str, object]) -> None:
    identity = Identity.generate()
    server = Curious(accepted=identity.client_key)
    with served(server, Identity.generate().host_key) as (port, _):
        stranger = Ssh(port, identity, check=lambda: None)
        with pytest.raises(GuestLost, match="Host key"):
            stranger.connect(30)
        time.sleep(0.1)
    assert server.offered == []
    assert server.asked == []
    assert untouched(user)


def test_a_guest_with_another_kind_of_key_is_refused() -> None:
    """A guest that has no Ed25519 key is not asked to be trusted at first sight."""
    identity = Identity.generate()
    server = Curious(accepted=identity.client_key)
    with served(server, paramiko.RSAKey.generate(2048)) as (port, _), pytest.raises(GuestLost):
        Ssh(port, identity, check=lambda: None).connect(30)
    assert server.offered == []


def test_nothing_of_a_strangers_is_remembered(user: dict[str, object]) -> None:
    """No known_hosts is read or written."""
    home = Path.home()
    identity = Identity.generate()
    server = Curious(accepted=identity.client_key)
    with served(server, identity.host_key) as (port, _):
        other = Identity.generate().host_public.strip()
        (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {other}\n")
        before = (home / ".ssh" / "known_hosts").read_text()
        ssh = Ssh(port, identity, check=lambda: None)
        ssh.connect(30)
        ssh.close()
    assert (home / ".ssh" / "known_hosts").read_text() == before
    assert untouched(user)


def test_of_a_long_command_a_message_tells_the_end() -> None:
    identity = Identity.generate()
    server = Curious(accepted=identity.client_key)
    settings = "\n".join(f"export NVH_{number}={number}" for number in range(200))
    with served(server, identity.host_key) as (port, _):
        ssh = Ssh(port, identity, check=lambda: None)
        ssh.connect(30)
        with pytest.raises(CommandTimeout) as caught:
            ssh.run(f"{settings}\n/opt/nvh/reproducer", timeout=1)
        ssh.close()
    message = caught.value.message
    assert message.startswith("no end after 1 s: ... ")
    assert message.endswith("NVH_199=199 /opt/nvh/reproducer")
    assert len(message) < 300
