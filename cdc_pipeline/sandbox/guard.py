"""Guard process: runs COMMAND and ends it with its children when the guard's parent ends.

The parent holds the guard's standard input, which closes at any death of the parent, `kill -9`
included. Usage: `-m cdc_pipeline.sandbox.guard [--grace SECONDS] COMMAND`: seconds from the
interrupt to the kill, 15 by default; 0 kills at once.
"""

import os
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 15


def main() -> int:
    """Run the command in a process group of its own until it ends or standard input closes."""
    command, grace = sys.argv[1:], float(_GRACE_SECONDS)
    if command[0] == "--grace":
        command, grace = command[2:], float(command[1])
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _end(child, grace))
    threading.Thread(target=_end_with_input, args=(child, grace), daemon=True).start()
    try:
        return child.wait()
    finally:
        _signal_group(child, signal.SIGKILL)


def _end_with_input(child: subprocess.Popen[bytes], grace: float) -> None:
    # Not sys.stdin: Python aborts if a thread has its lock when the command ends by itself.
    while os.read(0, 1024):
        pass
    _end(child, grace)


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    if not grace:
        _signal_group(child, signal.SIGKILL)
        return
    _signal_group(child, signal.SIGINT)
    killer = threading.Timer(grace, _signal_group, (child, signal.SIGKILL))
    killer.daemon = True
    killer.start()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main())
