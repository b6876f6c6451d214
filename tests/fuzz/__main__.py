"""`python -m tests.fuzz [--seconds 60] [target …]`: the targets under atheris, guided by coverage, one after the other.

Without atheris (it has no wheel for each system) hypothesis searches instead, for as long.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ATHERIS = importlib.util.find_spec("atheris") is not None


def main() -> int:
    """Fuzz; exit status 1 when a target raised, with the input that made it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="vendor, watch or http; all of them when none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.within is not None:
        return fuzz(given.target[0], given.seconds, Path(given.within))
    from tests.fuzz.targets import SEEDS, TARGETS

    for name in given.target or TARGETS:
        print(
            f"{name}: {given.seconds} s, {'atheris' if ATHERIS else 'hypothesis, as atheris is not here'}", flush=True
        )
        if not ATHERIS:
            search(name, given.seconds)
            continue
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            corpus = Path(folder, "corpus")
            corpus.mkdir()
            for number, seed in enumerate(SEEDS[name]):
                (corpus / str(number)).write_bytes(seed)
            # in a process of its own: the fuzzer ends it
            run = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(given.seconds), "--within", folder]
            done = subprocess.run(run, timeout=given.seconds + 600, check=False)
            found = sorted(Path(folder).glob("crash-*"))
            for path in found:
                print(f"{name} raised on {path.read_bytes()!r}", file=sys.stderr)
            if done.returncode or found:
                return 1
    return 0


def fuzz(name: str, seconds: int, folder: Path) -> int:
    """One target under atheris, in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["streamer"]):
        from tests.fuzz.targets import TARGETS
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder / "corpus")], TARGETS[name])
    atheris.Fuzz()
    return 0


def search(name: str, seconds: int) -> None:
    """One target under hypothesis, in rounds."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from tests.fuzz.mutations import mutated
    from tests.fuzz.targets import SEEDS, TARGETS

    until = time.monotonic() + seconds
    while time.monotonic() < until:

        @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mutated(SEEDS[name]) | st.binary(max_size=500))
        def once(data: bytes) -> None:
            TARGETS[name](data)

        once()


if __name__ == "__main__":
    sys.exit(main())
