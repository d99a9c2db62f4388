"""How fast a memory snapshot is read: half a million events with 25 frames each, made here.

Prints CPU seconds and peak memory of reading it into a trace and finding its peak, beside unpickling alone.
"""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EVENTS = 500_000

PLAIN = "import pickle; pickle.load(open({path!r}, 'rb'))"
READ = """
from weigh.trace.peak import phase_peaks
from weigh.trace.snapshot import read_snapshot
[phase_peaks(s.trace) for s in read_snapshot({path!r})]
"""
MEASURE = """
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def synthetic(path: Path) -> None:
    """Allocations and frees in no order, each with a stack of its own over 400 frames."""
    chance = random.Random(0)
    frames = [{"filename": f"/home/me/model{i}.py", "line": i, "name": f"f{i}"} for i in range(400)]
    events: list[dict[str, Any]] = []
    live: list[tuple[int, int]] = []
    while len(events) < EVENTS:
        stack = [chance.choice(frames) for _ in range(25)]
        if live and chance.random() < 0.5:
            address, size = live.pop(chance.randrange(len(live)))
            actions = ["free_requested", "free_completed"]
        else:
            address, size = len(events) << 12, chance.randrange(512, 1 << 20)
            live.append((address, size))
            actions = ["alloc"]
        common = {"addr": address, "size": size, "stream": 0, "time_us": len(events), "frames": stack}
        events += [{"action": action, **common} for action in actions]
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [events], "allocator_settings": {}}))


def main() -> None:
    """Print the two."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        synthetic(path)
        print(f"snapshot of {EVENTS:,} events, {path.stat().st_size / 2**20:.0f} MiB")
        for name, code in (("unpickled", PLAIN), ("weighed", READ)):
            words = [sys.executable, "-c", code.format(path=str(path)) + MEASURE]
            seconds, resident = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
            print(f"  {name:10} {float(seconds):6.2f} s CPU  {float(resident):6.0f} MiB  (plan: 10 s, 500 MB)")


if __name__ == "__main__":
    main()
