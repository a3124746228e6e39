"""Tables and figure of `ablation.py`, from its records alone, so that they need no training.

A record is one run: what was combined, the test accuracy, and the gradient norm of each kernel,
first to last, before and after training.
"""

import itertools
import json
import os
import statistics

import numpy as np

from gradstab import reports

PLAIN = {"initializer": "random", "penalty": "no penalty", "clip": "no clip", "optimizer": "SGD"}
MARKS = ("<!-- results -->", "<!-- end of results -->")


def first_to_last(norms):
    """Return the first kernel's gradient norm over the last one's, or the word for what it is."""
    if None in norms:
        return "NaN"
    return norms[0] / norms[-1] if norms[-1] else "dead"


def median_ratio(records, when="end"):
    """Return the median ratio in two digits, or the word that holds for most of the runs."""
    ratios = [first_to_last(record[f"gradient_norms_at_{when}"]) for record in records]
    numbers = [ratio for ratio in ratios if not isinstance(ratio, str)]
    words = [ratio for ratio in ratios if isinstance(ratio, str)]
    if len(words) > len(numbers):
        return statistics.mode(words)
    return f"{statistics.median(numbers):.2g}"


def accuracy(records):
    return statistics.median(record["test_accuracy"] for record in records)


def cell(records):
    return f"{accuracy(records):.3f} ({median_ratio(records)})"


def select(records, **wanted):
    return [r for r in records if all(r[name] == value for name, value in wanted.items())]


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def start_table(records, plan):
    """Gradient norms before the first step, which only setting, initializer and seed decide."""
    rows = []
    for setting, initializer in itertools.product(plan["settings"], plan["parts"]["initializer"]):
        runs = select(records, setting=setting, initializer=initializer)
        norms = np.median([run["gradient_norms_at_start"] for run in runs], axis=0)
        ends = [f"{norm:.1e}" for norm in (norms[0], norms[-1])]
        rows.append([setting, initializer, *ends, median_ratio(runs, "start")])
    return markdown(["setting", "initializer", "first kernel", "last kernel", "ratio"], rows)


def part_table(records, plan):
    """Mean accuracy of each choice, its difference to the first, and how many end at chance."""
    rows = []
    for part, choices in plan["parts"].items():
        for choice in choices:
            row = [part, choice]
            for setting in plan["settings"]:
                runs = select(records, setting=setting)
                scores = np.array([r["test_accuracy"] for r in select(runs, **{part: choice})])
                at_chance = f"{100 * np.mean(scores <= 0.2):.0f} %"
                row += [f"{scores.mean():.3f}", at_chance, difference(runs, plan, part, choice)]
            rows.append(row)
    columns = ("mean", "at chance", "difference")
    head = [f"{setting}: {column}" for setting in plan["settings"] for column in columns]
    return markdown(["part", "choice", *head], rows)


def clip_table(records, plan):
    """What each clip changes, by what drives the run and how it starts."""
    clips = plan["parts"]["clip"][1:]
    rows = []
    for setting, is_random in itertools.product(plan["settings"], (True, False)):
        for optimizer in plan["parts"]["optimizer"]:
            runs = [
                run
                for run in select(records, setting=setting, optimizer=optimizer)
                if (run["initializer"] == "random") == is_random
            ]
            cells = [difference(runs, plan, "clip", clip) for clip in clips]
            rows.append([setting, "random" if is_random else "Xavier, He", optimizer, *cells])
    return markdown(["setting", "initializer", "optimizer", *clips], rows)


def difference(records, plan, part, choice):
    """Return the gain in points over the first choice of a part, with its 95 % interval.

    Runs that are equal in all else, the seed included, are paired, and the pairs drawn again.
    """
    first = plan["parts"][part][0]
    if choice == first:
        return ""
    others = ("setting", "seed", *(name for name in plan["parts"] if name != part))
    scores = {
        each: {tuple(r[name] for name in others): 100 * r["test_accuracy"] for r in chosen}
        for each in (first, choice)
        for chosen in [select(records, **{part: each})]
    }
    gains = np.array([score - scores[first][key] for key, score in scores[choice].items()])
    draws = np.random.default_rng(0).choice(gains, (4000, len(gains))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{gains.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def full_table(records, plan):
    parts = plan["parts"]
    names = ("setting", "initializer", "penalty", "clip")
    rows = []
    for start in itertools.product(plan["settings"], *(parts[name] for name in names[1:])):
        runs = select(records, **dict(zip(names, start, strict=True)))
        cells = [cell(select(runs, optimizer=optimizer)) for optimizer in parts["optimizer"]]
        rows.append([*start, *cells])
    return markdown([*names, *parts["optimizer"]], rows)


def batch_size_table(records, plan, best):
    sizes = sorted({32, *plan["batch_sizes"]})
    rows = []
    for setting in plan["settings"]:
        for name, parts in (("plain", PLAIN), ("best", best)):
            runs = select(records, setting=setting, **parts)
            rows.append([setting, name, *(cell(select(runs, batch_size=size)) for size in sizes)])
    return markdown(["setting", "combination", *(f"batches of {size}" for size in sizes)], rows)


def draw(records, plan, path):
    """Draw test accuracies: how a run begins from top to bottom, what drives it across."""
    parts = plan["parts"]
    down = list(itertools.product(plan["settings"], parts["initializer"], parts["penalty"]))
    across = list(itertools.product(parts["optimizer"], parts["clip"]))
    table = np.zeros((len(down), len(across)))
    for row, (setting, initializer, penalty) in enumerate(down):
        runs = select(records, setting=setting, initializer=initializer, penalty=penalty)
        for column, (optimizer, clip) in enumerate(across):
            table[row, column] = accuracy(select(runs, optimizer=optimizer, clip=clip))
    ax = reports.plot_heatmap(
        table,
        [", ".join(names) for names in down],
        [", ".join(names) for names in across],
        title="Test accuracy, median of the seeds",
        label="test accuracy (chance is 0.1)",
    )
    reports.save(ax, path)


def write_results(header, records, best, output):
    """Write the JSON, the figure, and the tables between the marks of the page; return these."""
    plan = header["plan"]
    at_32 = select(records, batch_size=32)
    seeds = ", ".join(map(str, header["seeds"]))
    text = "\n\n".join(
        [
            f"{len(records)} runs of {plan['epochs']} epochs; seeds {seeds}, from commit "
            f"{(header['commit'] or 'none')[:8]}; {header['machine']}; TensorFlow "
            f"{header['versions']['tensorflow']}, Keras {header['versions']['keras']}.",
            "### Gradient norms before training",
            start_table(at_32, plan),
            "### Each choice over all choices of the other parts",
            part_table(at_32, plan),
            "### What a clip changes",
            clip_table(at_32, plan),
            "### Batch sizes",
            f"Best on validation data: {', '.join(best.values())}. Plain: "
            f"{', '.join(PLAIN.values())}.",
            batch_size_table(records, plan, best),
            "### All combinations",
            full_table(at_32, plan),
        ]
    )
    draw(at_32, plan, output / "docs" / "images" / "ablation.png")
    write(output / "benchmarks" / "results" / "ablation.json", as_json(header, records, best))
    page = output / "docs" / "ablation.md"
    old = page.read_text("utf-8") if page.exists() else "\n".join(("# Ablation", "", *MARKS, ""))
    before, rest = old.split(MARKS[0])
    write(page, f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}")
    return text


def as_json(header, records, best):
    """Return header, best combination and one line per run, numbers in five digits.

    Without the seconds, which tell of the machine's other work more than of the run.
    """
    columns = [name for name in records[0] if name != "seconds"]
    rows = [json.dumps([rounded(record[name]) for name in columns]) for record in records]
    head = {**header, "best": best, "columns": columns}
    return json.dumps(head, indent=1)[:-2] + ',\n "runs": [\n' + ",\n".join(rows) + "\n]}\n"


def rounded(value):
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def write(path, text):
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
