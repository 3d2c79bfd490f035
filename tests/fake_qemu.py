#!/usr/bin/env python3
"""Stands in for QEMU where a test is about how the harness takes what QEMU does.

It finds its descriptors as QEMU does, speaks QMP, and plays the scenario in $FAKE_QEMU: words
that are done one after the other.  Each start is a line in $FAKE_QEMU_LOG.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any


def wire(name: str) -> socket.socket:
    """Return the socket of a chardev."""
    match = re.search(rf"socket,id={name},fd=(\d+)", " ".join(sys.argv))
    assert match is not None, f"no chardev {name}"
    return socket.socket(fileno=int(match[1]))


def serve(monitor: socket.socket, answered: threading.Semaphore) -> None:
    """Answer QMP commands until the other end is gone."""
    version = {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": ""}
    say(monitor, {"QMP": {"version": version, "capabilities": []}})
    for command in commands(monitor):
        answer = {"return": {}} | ({"id": command["id"]} if "id" in command else {})
        if command["execute"] == "human-monitor-command":
            answer["return"] = os.environ.get("FAKE_QEMU_HMP", "")
        say(monitor, answer)
        answered.release()
        if command["execute"] == "quit":
            os._exit(0)


def commands(monitor: socket.socket) -> Iterator[dict[str, Any]]:
    """Read JSON objects, which nothing need separate, until the other end is gone."""
    text = ""
    while chunk := monitor.recv(1 << 16):
        text += chunk.decode()
        while text := text.lstrip():
            try:
                command, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break  # the rest is on its way
            text = text[end:]
            yield command


def say(monitor: socket.socket, message: object) -> None:
    """Send one message."""
    monitor.sendall(json.dumps(message).encode() + b"\n")


def event(monitor: socket.socket, name: str, **data: object) -> None:
    """Send one event."""
    stamp = {"seconds": 0, "microseconds": 0}
    say(monitor, {"event": name, "data": data, "timestamp": stamp})


def play(scenario: str) -> None:
    """Do the scenario's words in order."""
    monitor: socket.socket | None = None
    console: socket.socket | None = None
    answered = threading.Semaphore(0)
    for step in scenario.split(";"):
        word, _, rest = step.partition(":")
        match word:
            case "refuse":
                sys.stderr.write(f"first words\nqemu-system-x86_64: {rest}\n")
                sys.exit(1)
            case "sleep":
                time.sleep(float(rest))
            case "greet":
                monitor, answered = wire("qmp"), threading.Semaphore(0)
                threading.Thread(target=serve, args=(monitor, answered), daemon=True).start()
                answered.acquire(timeout=30)
            case "asked":  # until the harness has asked something
                answered.acquire(timeout=30)
            case "print":
                console = console or wire("console")
                console.sendall(rest.encode() + b"\r\n")
            case "event":
                name, _, reason = rest.partition(",")
                assert monitor is not None
                event(monitor, name, **({"reason": reason} if reason else {}))
            case "stderr":
                sys.stderr.write(rest + "\n")
                sys.stderr.flush()
            case "ignore-term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "exit":
                os._exit(int(rest))
            case "kill":
                os.kill(os.getpid(), int(rest))
            case _:
                sys.exit(f"fake_qemu: what is {step!r}?")


def main() -> None:
    """Be QEMU."""
    if "--version" in sys.argv:
        print("QEMU emulator version 0.0.0 (fake)\nCopyright")
        return
    if log := os.environ.get("FAKE_QEMU_LOG"):
        with open(log, "a") as out:  # noqa: PTH123
            out.write(" ".join(sys.argv[1:]) + "\n")
    play(os.environ["FAKE_QEMU"])


if __name__ == "__main__":
    main()
