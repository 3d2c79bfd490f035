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


def wire(name: str) -> socket.socket:
    """Return the socket of a chardev."""
    match = re.search(rf"socket,id={name},fd=(\d+)", " ".join(sys.argv))
    assert match is not None, f"no chardev {name}"
    return socket.socket(fileno=int(match[1]))


def serve(monitor: socket.socket, greeted: threading.Event) -> None:
    """Answer QMP commands until the other end is gone."""
    say(
        monitor,
        {
            "QMP": {
                "version": {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": ""},
                "capabilities": [],
            }
        },
    )
    for line in monitor.makefile("r"):
        command = json.loads(line)
        answer = {"return": {}} | ({"id": command["id"]} if "id" in command else {})
        if command["execute"] == "human-monitor-command":
            answer["return"] = os.environ.get("FAKE_QEMU_HMP", "")
        say(monitor, answer)
        greeted.set()
        if command["execute"] == "quit":
            os._exit(0)


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
    for step in scenario.split(";"):
        word, _, rest = step.partition(":")
        match word:
            case "refuse":
                sys.stderr.write(f"first words\nqemu-system-x86_64: {rest}\n")
                sys.exit(1)
            case "sleep":
                time.sleep(float(rest))
            case "greet":
                monitor, greeted = wire("qmp"), threading.Event()
                threading.Thread(target=serve, args=(monitor, greeted), daemon=True).start()
                greeted.wait(30)
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
