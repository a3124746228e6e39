"""Campaigns: each result is measured in a fresh process and written as it comes."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradstab.cli.console import write_whole
from harness.origin import git

# What a campaign goes on with only if told to, where it is another now.
SAME = ("benchmark", "quick", "commit", "rounds")


def begin(head: dict[str, Any], output: Path | None, resume: bool) -> dict[str, Any]:
    """Return the content of `output`, if it has this head or may have another, or a new content.

    The results stand under "results", by name, each with the commit that it was measured at.
    """
    if output is None or not output.exists():
        return {**head, "results": {}}
    content: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    other = [name for name in SAME if content[name] != head[name]]
    if other and not resume:
        sys.exit(f"{output} is of another campaign: {' and '.join(other)} changed. Go on with it "
                 "as it began by --resume, or remove it to begin anew")  # fmt: skip
    return content


def run(
    wanted: Mapping[str, float],
    measure: Callable[[str], dict[str, Any] | None],
    content: dict[str, Any],
    output: Path | None,
    show: Callable[[dict[str, Any]], str],
    workers: int = 1,
) -> bool:
    """Measure what is missing, and return whether all could be.

    Args:
        wanted: Names of the results, with the seconds that each is expected to take.
        measure: Returns a result, or `None` if that fails.
        content: What `begin` returned.
        output: File to write it to after each result.
        show: Returns the lines to print of a result.
        workers: How many are measured at a time; for speeds, one.
    """
    results = content["results"]
    missing = [name for name in wanted if name not in results]
    left = dict.fromkeys(missing)
    print(f"{len(wanted)} results, {len(wanted) - len(missing)} there already; "
          f"about {_minutes(wanted, missing, workers)} on two cores", flush=True)  # fmt: skip

    def timed(name: str) -> tuple[dict[str, Any] | None, float]:
        started = time.perf_counter()
        return measure(name), time.perf_counter() - started

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        begun = {pool.submit(timed, name): name for name in missing}
        try:
            for done in concurrent.futures.as_completed(begun):
                name = begun[done]
                result, seconds = done.result()
                del left[name]
                if result is None:
                    print(f"{name}: could not be measured", flush=True)
                    continue
                results[name] = {"commit": git("rev-parse", "HEAD"), **result}
                if output is not None:
                    write_whole(output, json.dumps(content, indent=1, allow_nan=False))
                print(f"{name}: {seconds:.0f} s, about {_minutes(wanted, list(left), workers)} "
                      "left", flush=True)  # fmt: skip
                print(show(result), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return all(name in results for name in wanted)


def _minutes(seconds: Mapping[str, float], names: list[str], workers: int) -> str:
    return f"{sum(seconds[name] for name in names) / 60 / workers:.0f} minutes"


def in_fresh_process(
    script: str, task: Any, *, threads: int | None = None
) -> dict[str, Any] | None:
    """Run `script --one TASK` and return what its last line says; `None` if it fails.

    Args:
        script: A benchmark.
        task: What it is told, in JSON.
        threads: Threads for TensorFlow's operations; by default as many as there are cores.
    """
    limits = {} if threads is None else {
        f"TF_NUM_{kind}_THREADS": str(threads) for kind in ("INTRAOP", "INTEROP")
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, script, "--one", json.dumps(task)],
        stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **limits},
    )  # fmt: skip
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])
