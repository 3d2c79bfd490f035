"""Keys of a run's own: one for the guest's SSH server, one for the harness."""

from __future__ import annotations

import io
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Identity:
    """The two key pairs by which a guest and the harness know each other (OpenSSH formats)."""

    host_private: str
    host_public: str
    client_private: str
    client_public: str

    @classmethod
    def generate(cls) -> Identity:
        """Make fresh Ed25519 keys; nothing of the user's is read."""
        return cls(*_pair(), *_pair())

    @property
    def host_file(self) -> bytes:
        """The server's key as dropbear reads it (2022.83, buf_put_ed25519_priv_key)."""
        key = serialization.load_ssh_private_key(self.host_private.encode(), None)
        assert isinstance(key, Ed25519PrivateKey)
        pair = key.private_bytes_raw() + key.public_key().public_bytes_raw()
        name = b"ssh-ed25519"
        return b"".join(len(part).to_bytes(4, "big") + part for part in (name, pair))

    @property
    def client_key(self) -> paramiko.PKey:
        """The harness's key as paramiko wants it."""
        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.client_private))

    @property
    def host_key(self) -> paramiko.PKey:
        """The only host key that the harness accepts."""
        return paramiko.Ed25519Key.from_private_key(io.StringIO(self.host_private))


def _pair() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode() + "\n"
