"""Feed broken files to every reader, for longer than the suite does: `tools/fuzz.py [SECONDS [READER...]]`.

With atheris, libFuzzer is guided by the coverage of `weigh.sources`; without it, good files are changed at random. What
a reader may not raise (anything but `WeighError`), or takes more than ten seconds for, stops that reader's run with
the bytes that did it. The readers are in `tests/sources/fuzzing.py`.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "sources"))

try:
    import atheris
except ImportError:
    atheris = None  # type: ignore[assignment,unused-ignore]


def one(name: str, seconds: int) -> None:
    """Fuzz one reader; prints how many executions there were. Does not return where atheris is in charge."""
    if atheris is None:
        import fuzzing

        at_random(fuzzing, name, seconds)
        return
    with atheris.instrument_imports(include=["weigh.sources", "weigh.models.check"]):
        import fuzzing

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(fuzzing.TARGETS[name].seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, "-print_final_stats=1"], lambda data: fuzzing.run(name, data))
    atheris.Fuzz()


def at_random(fuzzing: object, name: str, seconds: int) -> None:
    """Change good files a little, over and over; the same changes in every run."""
    chance, executions, until = random.Random(name), 0, time.monotonic() + seconds
    seeds = fuzzing.TARGETS[name].seeds  # type: ignore[attr-defined]
    while time.monotonic() < until:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randint(0, 4)] = chance.choice(
                [chance.randbytes(chance.randint(0, 9)), b"\xff" * 8, bytes(8), data[at : at + 40] * 2]
            )
        started = time.monotonic()
        try:
            fuzzing.run(name, bytes(data))  # type: ignore[attr-defined]
        except BaseException:
            Path(f"crash-{name}").write_bytes(data)
            raise
        assert time.monotonic() - started < 10, "too slow"
        executions += 1
    print(f"stat::number_of_executed_units: {executions}", file=sys.stderr)


def main() -> int:
    """Every reader in a process of its own."""
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        one(sys.argv[2], int(sys.argv[3]))
        return 0
    import fuzzing

    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    failed = 0
    for name in sys.argv[2:] or fuzzing.TARGETS:
        environment = {**os.environ, "XDG_CACHE_HOME": tempfile.mkdtemp()}
        command = [sys.executable, __file__, "--one", name, str(seconds)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r"number_of_executed_units: +(\d+)", result.stderr)
        executions = f"{int(found[1]):,}" if found else "?"
        print(f"{name:12} {executions:>12} executions  {'ok' if result.returncode == 0 else 'FAILED'}", flush=True)
        if result.returncode:
            failed += 1
            print(result.stderr[-4000:])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
