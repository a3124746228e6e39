"""What initializers, regularizers and layers do for signals and gradients in deep nets.

    python benchmarks/signal_propagation.py [--quick] [--output FILE] [--resume] [--only PART ...]
        [--results NAME ...]
    python benchmarks/signal_propagation.py --table FILE

Each part stands in `benchmarks/signal_parts/` with what it measures and which floor it has. A
result is measured in a fresh process and written as it comes; the same call goes on where it was.
Seeds come from the first eight hex digits of the commit that the campaign begins with. It exits
with 1 if a floor fails or a result can't be measured. `--quick` takes smaller nets and one seed, to
see that everything works; its numbers mean little.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import signal_parts
from harness import campaign
from harness.origin import has_uncommitted_changes, machine


def parts() -> dict[str, ModuleType]:
    """Return the modules of the parts by their names."""
    names = sorted(found.name for found in pkgutil.iter_modules(signal_parts.__path__))
    return {name: importlib.import_module(f"signal_parts.{name}") for name in names}


def summary(content: dict[str, Any]) -> str:
    """Return the tables of all parts that have results, in Markdown."""
    tables = []
    for name, part in parts().items():
        mine = {
            key.partition(": ")[2]: result["result"]
            for key, result in content["results"].items()
            if key.partition(": ")[0] == name
        }
        if mine:
            tables.append(f"### {part.NAME}\n\n{part.table(mine)}")
    return "\n\n".join(tables)


def one(name: str, result: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Measure one result of one part, in this process."""
    return {"result": parts()[name].measure(result, seeds, quick)}


def main() -> int:
    arguments = _parse()
    if arguments.one:
        name, result, seeds, quick = json.loads(arguments.one)
        print(json.dumps(one(name, result, seeds, quick)))
        return 0
    if arguments.table:
        print(summary(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    head = {
        "benchmark": "signal_propagation",
        "quick": arguments.quick,
        "rounds": None,
        **machine(),
        "uncommitted_changes": has_uncommitted_changes(),
    }
    content = campaign.begin(head, arguments.output, arguments.resume)
    seeds = int(content["commit"][:8], 16)
    projected = {
        f"{name}: {result}": seconds
        for name, part in parts().items()
        if name in (arguments.only or parts())
        for result, seconds in part.wanted(arguments.quick).items()
        if arguments.results is None or result in arguments.results
    }

    def measure(key: str) -> dict[str, Any] | None:
        name, _, result = key.partition(": ")
        task = name, result, seeds, arguments.quick
        # Quickly, TensorFlow's start would take most of the time.
        return one(*task) if arguments.quick else campaign.in_fresh_process(__file__, task)

    complete = campaign.run(
        projected, measure, content, arguments.output, lambda result: f"  {result['result']}"
    )
    text = summary(content)
    print(f"\n{text}")
    return 0 if complete and (arguments.quick or "FAILS" not in text) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller nets, one seed")
    parser.add_argument("--output", type=Path, help="write results as JSON to this file")
    parser.add_argument("--resume", action="store_true", help="go on with FILE as it began")
    parser.add_argument("--only", nargs="+", choices=sorted(parts()), help="default: all parts")
    parser.add_argument("--results", nargs="+", help="of these parts, only results of these names")
    parser.add_argument("--table", type=Path, help="print the tables of a result file, and no more")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one result, in this process
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
