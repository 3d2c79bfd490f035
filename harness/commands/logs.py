"""nvh classify: find kernel faults in any console log."""

from __future__ import annotations

import argparse

from harness.verdict.classify_files import classify_files


def classify(args: argparse.Namespace) -> int:
    """Print what was found in each file; the exit code is 1 where there is a finding."""
    return classify_files(args.files, as_json=args.json)
