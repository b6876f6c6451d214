"""`python -m tests.chaos [--rounds 100] [--seed N]`: exit status 0 if every round passed, else 1.

A failed round prints its seed: `--rounds 1 --seed SEED` repeats the same faults.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.rounds import TRUE_WITHIN, Chaos


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="so many rounds (100)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; each next one has one more")
    parser.add_argument("--within", type=float, default=TRUE_WITHIN, help="seconds from healing to the truth (5)")
    parser.add_argument("--keep-going", action="store_true", help="play on after a round that failed")
    chosen = parser.parse_args()
    seed = int(time.time()) % 1_000_000 * 1000 if chosen.seed is None else chosen.seed
    folder = Path(tempfile.mkdtemp(prefix="streamer-chaos-"))
    folder.chmod(0o711)  # PostgreSQL's own user needs access
    status = asyncio.run(run(folder, chosen.rounds, seed, chosen.within, chosen.keep_going))
    if status == 0:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


async def run(folder: Path, rounds: int, seed: int, within: float, keep_going: bool) -> int:
    """Runs rounds, prints each, and returns the exit status."""
    failed: list[int] = []
    kinds = Counter[str]()
    slowest = 0.0
    async with Chaos(folder, true_within=within) as chaos:
        for number in range(rounds):
            verdict = await chaos.play(seed + number)
            print(f"{number + 1}/{rounds} {verdict}", flush=True)
            kinds.update(f"{fault.kind} {fault.target.split()[0]}" for fault in verdict.faults)
            slowest = max(slowest, verdict.true_in)
            if verdict.wrong:
                failed.append(verdict.seed)
                if not keep_going:
                    break
        left = await chaos.settled()
        pings = sum(len(mover.app.acked) for mover in chaos.crowd.movers)
    for line in left:
        print(f"at the end: {line}")
    print(f"{sum(kinds.values())} faults: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    print(
        f"{pings} pings acked, every one stored once: {not left}; the slowest truth came {slowest:.2f} s after healing"
    )
    if failed or left:
        print(f"FAILED: seeds {failed}; logs are in {folder}; `--rounds 1 --seed SEED` plays one again")
        return 1
    return 0


if __name__ == "__main__":
    main()
