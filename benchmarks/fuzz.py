"""Read damaged files of every kind for some minutes, and count what comes of them.

    python -m benchmarks.fuzz [--minutes 10] [--seed 2] [--reader "Llama folder"] [--module tests.fuzz.readers]

Goes round all readers, a batch of new damaged inputs each, until the time is over. Prints a line a reader: inputs,
accepted, clean errors, crashes, hangs, inputs that took too much memory, and the largest memory. Then it prints each
finding with the command that runs it again. Exit status 1 if there are findings. docs/LOG.md has results.
"""

import argparse
import importlib
import sys
import time

from tests.fuzz.runner import CLASSES, Fuzzer, Result

BATCH = 200


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files of every kind and count what comes of them.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--reader", action="append", help="one of the table READERS; may be given several times")
    parser.add_argument("--module", default="tests.fuzz.readers")
    options = parser.parse_args()
    names = options.reader or list(importlib.import_module(options.module).READERS)
    totals = {name: Result() for name in names}
    end, first = time.monotonic() + 60 * options.minutes, 0
    with Fuzzer(options.module) as fuzzer:
        while time.monotonic() < end:
            for name in names:
                if time.monotonic() < end:
                    totals[name] += fuzzer.run(name, BATCH, options.seed, first)
            first += BATCH
    print(f"{'reader':32}{'inputs':>9}" + "".join(f"{name:>10}" for name in CLASSES) + f"{'largest MB':>12}")
    for name, result in totals.items():
        counts = "".join(f"{result.counts[outcome]:>10}" for outcome in CLASSES)
        print(f"{name:32}{result.mutations:>9}{counts}{result.memory / 1e6:>12.0f}")
    for name, result in totals.items():
        for finding in result.bad:
            print(f"\n{finding.outcome}: {finding.mutation}\n{finding.detail.rstrip()}")
            place = f'"{name}" --seed {options.seed} --first {finding.index} --count 1'
            print(f"again: python -m tests.fuzz.runner {options.module} {place}")
    return any(result.bad for result in totals.values())


if __name__ == "__main__":
    sys.exit(main())
