"""The command line; what it does is said in `__init__.py`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import mutation
from tests.mutation.by_hand import by_hand
from tests.mutation.campaign import Campaign, explained, report
from tests.mutation.mutants import Finder
from tests.mutation.targets import ROOT, TARGETS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.mutation",
        description=mutation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("contract", choices=TARGETS, nargs="?", default="StreamPay")
    parser.add_argument("--module", action="append", help="only this source of the contract; may be repeated")
    parser.add_argument("--hand", action="store_true", help="those written by hand in place of the generated ones")
    parser.add_argument("--limit", type=int, help="only so many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="only this mutant; may be repeated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--results", type=Path, help="a file to keep results in: what it has is not tried again")
    options = parser.parse_args(arguments)

    target = TARGETS[options.contract]
    sources = options.module or target.sources
    if unknown := set(sources) - set(target.sources):
        parser.error(f"{target.name} has no source {min(unknown)}; it has {', '.join(target.sources)}")
    mutants = by_hand(sources) if options.hand else [m for source in sources for m in Finder(source).mutants()]
    if options.only:
        if unknown := set(options.only) - {m.name for m in mutants}:
            parser.error(f"{target.name} has no mutant {min(unknown)} here: see --list, and --hand for those by hand")
        mutants = [m for m in mutants if m.name in options.only]
    if options.limit is not None and options.limit < len(mutants):
        drawn = set(random.Random(options.seed).sample(range(len(mutants)), options.limit))
        mutants = [m for i, m in enumerate(mutants) if i in drawn]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}  {mutant.where}  {mutant.key}")
        return 0

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no node is left behind
    os.chdir(ROOT)
    os.environ["PENSTOCK_PROFILE"] = "quick"
    campaign = Campaign(target, mutants, options.workers, options.seed, options.results)
    settings = ["-p", "no:ape_test", "-p", "no:cacheprovider", "--tb=line", "-qq"]
    settings += [part for test in target.left_out for part in ("--deselect", test)]
    code = pytest.main([*settings, *target.tests], plugins=[campaign])
    return 0 if report(target, mutants, campaign.results, explained()) and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
