"""Ask for known vulnerabilities in what the locks pin: `audit.py PIP_AUDIT LOCK…`.

Exit status 1 when one is known, or the locks can't be read. A registry that does not answer, or knows nothing of what
it was asked, is said and is no failure: where there is no way out, the other checks must still run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

WITHIN = 120.0
"""Seconds for one lock; with its answer in hand pip-audit takes a few."""

OPTIONS = ("--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10")
UNREACHABLE = ("Connection", "timed out")


def judged(lock: str, found: list[dict[str, Any]]) -> tuple[bool, list[str]]:
    """Whether pip-audit's `dependencies` let it pass, and what to say of each that was not found clean."""
    lines = []
    unasked = [one["name"] for one in found if "skip_reason" in one]
    bad = [one for one in found if one.get("vulns")]
    for one in bad:
        for vulnerability in one["vulns"]:
            mended = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            lines.append(f"{lock}: {one['name']} {one['version']}: {vulnerability['id']}, mended in {mended}")
    if unasked:
        lines.append(f"{lock}: NOT CHECKED, the registry tells nothing of {len(unasked)} of {len(found)} packages")
    if not lines:
        lines.append(f"{lock}: no known vulnerability in {len(found)} packages")
    return not bad, lines


def main(program: str, *locks: str) -> int:
    passes = True
    for lock in locks:
        try:
            done = subprocess.run(
                (program, *OPTIONS, "--requirement", lock), capture_output=True, text=True, timeout=WITHIN, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"{lock}: NOT CHECKED, the registry did not answer within {WITHIN:g} s")
            continue
        try:
            fine, lines = judged(lock, json.loads(done.stdout)["dependencies"])
        except (ValueError, KeyError):
            cause = done.stderr.strip().rsplit("\n", 1)[-1]
            fine = any(word in cause for word in UNREACHABLE)
            lines = [f"{lock}: {'NOT CHECKED' if fine else 'pip-audit failed'}: {cause}"]
        passes = passes and fine
        print(*lines, sep="\n")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
