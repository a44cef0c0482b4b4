#!/usr/bin/env bash
# Dagster 1.13.27 with pytest 9.2.0 and pytest-timeout 2.4.0 (method "signal"): a test that runs a job in its own process
# and takes longer than its timeout passes.
#
# Guess: pytest-timeout's failure ends the test, as it derives from BaseException and not from Exception, and as
# KeyboardInterrupt does.
# Seen: it is raised inside the step, Dagster catches it there and calls the run failed. The test goes on, its alarm is
# spent, whatever else it runs has no limit any more, and where nothing asserts success it passes.
#
# Output: first run success False, second True, took 8 s of 2, exit code of pytest 0
#
# Needs Python 3.11. Exits 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    'dagster==1.13.27' 'pytest==9.2.0' 'pytest-timeout==2.4.0'

cat >"$work/test_timeout.py" <<'PYTHON'
import time

import dagster as dg
import pytest

pauses = [6, 6]


@dg.op
def wait():
    time.sleep(pauses.pop())


@dg.job
def waiting():
    wait()


@pytest.mark.timeout(2)
def test_two_runs_of_six_seconds():
    began = time.monotonic()
    runs = [waiting.execute_in_process(raise_on_error=False) for _ in range(2)]
    print(f"RESULT {runs[0].success} {runs[1].success} {time.monotonic() - began:.0f}")
PYTHON
status=0
told=$("$work/venv/bin/python" -m pytest -q -s -p no:cacheprovider "$work/test_timeout.py" 2>&1) || status=$?
read -r _ first second seconds < <(grep '^RESULT' <<<"$told")
echo "first run success $first, second $second, took $seconds s of 2, exit code of pytest $status"
[ "$first $second $status" = "False True 0" ] && [ "$seconds" -ge 7 ]
