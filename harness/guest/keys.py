"""Keys of a run's own: one for the guest's SSH server, one for the harness."""

from __future__ import annotations

import io
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Identity:
    """The two key pairs by which a guest and the harness know each other (OpenSSH formats)."""

    host_private: str
    host_public: str
    client_private: str
    client_public: str

    @classmethod
    def generate(cls) -> Identity:
        """Make fresh ECDSA keys; nothing of the user's is read.

        Under TCG a login with P-256 costs half of one with Ed25519: OpenSSH leaves P-256 to
        libcrypto's assembly and has portable C of its own for the other.
        """
        return cls(*_pair(), *_pair())

    @property
    def client_key(self) -> paramiko.PKey:
        """The harness's key as paramiko wants it."""
        return paramiko.ECDSAKey.from_private_key(io.StringIO(self.client_private))

    @property
    def host_key(self) -> paramiko.PKey:
        """The only host key that the harness accepts."""
        return paramiko.ECDSAKey.from_private_key(io.StringIO(self.host_private))


def _pair() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode() + "\n"
