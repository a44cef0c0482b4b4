"""Guard process: runs COMMAND and ends it with its children when the guard's parent ends.

The parent holds the guard's standard input, which closes at any death of the parent, `kill -9`
included. Usage: `-m cdc_pipeline.sandbox.guard COMMAND`.
"""

import os
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 15


def main() -> int:
    """Run the command in a process group of its own until it ends or standard input closes."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _end(child))
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    try:
        return child.wait()
    finally:
        _signal_group(child, signal.SIGKILL)


def _end_with_input(child: subprocess.Popen[bytes]) -> None:
    sys.stdin.buffer.read()
    _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal_group(child, signal.SIGINT)
    killer = threading.Timer(_GRACE_SECONDS, _signal_group, (child, signal.SIGKILL))
    killer.daemon = True
    killer.start()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
