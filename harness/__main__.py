"""Where nvh begins: what a signal does before there is anything to end."""

from __future__ import annotations

import os
import signal
import sys

from harness.errors import EXIT_INTERRUPTED


def main() -> int:
    """Run nvh; return its exit code, which is 130 after SIGINT or SIGTERM at any moment."""
    # What is ignored stays so: a shell without job control starts its background like that.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    # Takes a second, in which a KeyboardInterrupt would be the traceback of whatever was imported.
    from harness import cli, signals  # noqa: PLC0415

    try:
        return cli.main()
    except KeyboardInterrupt:  # one more, while the first was being told
        return EXIT_INTERRUPTED
    except BaseException:  # what cleaning made of one
        if not signals.came():
            raise
        return EXIT_INTERRUPTED


def _leave(*_: object) -> None:
    """End at once: nothing has been started, locked or written."""
    os.write(2, b"nvh: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
