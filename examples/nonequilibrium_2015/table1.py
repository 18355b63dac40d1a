"""The paper's Table 1 beside ours and the exact optimum, and the other results.

    python examples/nonequilibrium_2015/table1.py          # from the results kept
    python examples/nonequilibrium_2015/table1.py --run    # run every script first
    python examples/nonequilibrium_2015/table1.py --write  # write docs/paper_results.md

`--quick` with `--run` runs every script with tiny numbers, to see that they run; nothing is
kept then.
"""

import argparse
import importlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, RESULTS

SCRIPTS = (
    "gaussian",
    "heartbeat",
    "swiss_roll",
    "digits",
    "dead_leaves",
    "textures",
    "multiply",
)
NUM_COLOURS = 3
DOCUMENT = HERE.parents[1] / "docs" / "paper_results.md"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def number(value: Any, error: Any = None, digits: int = 3) -> str:
    """A figure with its error, or a dash."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def table_1(results: dict[str, Any]) -> list[str]:
    """One row per data set of the paper, in its units."""
    rows = []
    for name, prefix, label, unit, paper, gain in (
        ("swiss_roll", "", "swiss roll, learned rates", "bits", "2.35", "6.45"),
        ("swiss_roll", "geometric_", "- geometric rates", "bits", "-", "-"),
        ("swiss_roll", "thin_", "- thinner arms, geometric", "bits", "-", "-"),
        ("swiss_roll", "modern_", "- the same, 1000 steps, an MLP", "bits", "-", "-"),
        ("heartbeat", "", "heartbeat, trained on K", "bits/seq", "-2.414", "12.024"),
        ("heartbeat", "kernel_", "- on K, beside the kernel", "bits/seq", "-", "-"),
        ("heartbeat", "denoiser_", "- trained as a denoiser", "bits/seq", "-", "-"),
        ("texture_gravel", "", "gravel (paper: bark)", "bits/pixel", "-0.55", "1.5"),
        ("dead_leaves", "", "dead leaves", "bits/pixel", "1.489", "3.536"),
        ("mnist", "", "MNIST, the dense network", "bits/pixel", "-", "-"),
        ("cifar10", "", "CIFAR-10, the paper's network", "bits/pixel", "5.4", "11.5"),
        ("cifar10_unet", "", "- this library's U-Net", "bits/pixel", "-", "-"),
        ("digits", "", "digits, 8x8 (not in the paper)", "bits/pixel", "-", "-"),
    ):
        found = results.get(name)
        if found is None:
            continue
        # What has no row of its own under a prefix is the same for the whole data set.
        optimum = lambda key, found=found, prefix=prefix: number(
            found.get(prefix + key, found.get(key)), digits=4
        )
        rows.append(
            [
                label,
                unit,
                paper,
                gain,
                number(found[f"{prefix}K"], found[f"{prefix}K_standard_error"], 4),
                number(found[f"{prefix}K_minus_L_null"]),
                optimum("K_optimum"),
                number(
                    found.get(f"{prefix}K_learned"),
                    found.get(f"{prefix}K_learned_standard_error"),
                    4,
                ),
                optimum("K_learned_optimum"),
            ]
        )
    header = [
        "data",
        "unit",
        "paper: K",
        "paper: K - L_null",
        "K",
        "K - L_null",
        "exact optimum of K",
        "K, learned last step",
        "its exact optimum",
    ]
    return [
        "### Table 1",
        "",
        *table(header, rows),
        "Higher is better; ± is one standard error. The paper's swiss roll and images are "
        "other data (their parameters are not printed), so that only the heartbeat "
        "compares directly. Optima are of the same data law and schedule.",
        "",
    ]


def table_2(results: dict[str, Any]) -> list[str]:
    """Parzen windows on MNIST, beside the paper's own row."""
    found = results.get("mnist")
    if found is None:
        return []
    rows = [["the paper's network, as the paper has it", "317 ± 2.7", "220"]]
    for label, record, name in (
        ("the dense network, ours", "mnist", "model"),
        ("- means of x_0, the chain stopped before its end", "mnist", "means"),
        ("this library's U-Net", "mnist_unet", "model"),
        ("as many training images", "mnist", "training images"),
    ):
        if (row := results.get(record)) is not None:
            nats = row[f"parzen_nats, {name}"]
            error = row[f"parzen_standard_error, {name}"]
            bits = number(nats / math.log(2), error / math.log(2), 1)
            rows.append([label, bits, number(nats, error, 1)])
    return [
        "### Table 2, MNIST",
        "",
        "Mean log-likelihood of the 10,000 test images under Parzen windows on 10,000 "
        "draws; higher is better.",
        "",
        *table(["draws of", "bits", "nats"], rows),
        f"The dense network was trained for {found['train_steps']} steps of "
        f"{found['batch_size']} images, in {found['train_seconds'] / 60:.0f} minutes of "
        "one core.",
        "",
    ]


def cifar10(results: dict[str, Any]) -> list[str]:
    """Two networks in one chain on CIFAR-10."""
    found = {
        label: results[name]
        for name, label in (
            ("cifar10", "the paper's, narrow"),
            ("cifar10_unet", "this library's U-Net"),
        )
        if name in results
    }
    if not found:
        return []
    rows = [
        [
            label,
            f"{row['weights']:,}",
            f"{row['train_steps']} of {row['batch_size']}",
            number(row["train_seconds"] / 60, digits=0),
            number(row["K"], row["K_standard_error"], 2),
            number(row["K_minus_L_null"], digits=2),
            number(row["K_minus_L_null_ceiling"], digits=2),
            # `grey_bits` is of the paper's last step.
            number(
                (row["grey_bits"] - row["K_learned"] + row["K"]) / NUM_COLOURS, digits=2
            ),
        ]
        for label, row in found.items()
    ]
    if (best := results.get("cifar10", {}).get("gaussian_best_K")) is not None:
        row = results["cifar10"]
        null = row["K"] - row["K_minus_L_null"]
        label = "none: the best chain on Gaussian data of this covariance"
        figures = (best, best - null, row["K_minus_L_null_ceiling"])
        rows.append([label, *"---", *(number(x, digits=2) for x in figures), "-"])
    header = [
        "network",
        "weights",
        "steps, images in each",
        "minutes of one core",
        "K",
        "K - L_null",
        "its ceiling",
        "bits per dimension",
    ]
    return [
        "### CIFAR-10, two networks in one chain",
        "",
        "K in bits per pixel of three colours. The last column is the bound with its last "
        "step learned, in bits of the 256 levels; lower is better there.",
        "",
        *table(header, rows),
    ]


def images(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            label,
            number(found["K_learned"], found["K_learned_standard_error"]),
            number(found["gaussian"], found["gaussian_standard_error"]),
            number(found["lead_over_gaussian"], found["lead_standard_error"]),
            number(found["gaussian_best_K"]),
            number(found["weighted_minus_bound"]),
            str(found["train_seconds"]) if "train_seconds" in found else "-",
        ]
        for name, label in (
            ("dead_leaves", "dead leaves"),
            ("texture_grass", "grass"),
            ("texture_gravel", "gravel"),
            ("texture_brick", "brick"),
            ("digits", "digits, the paper's network"),
            ("digits_prior", "digits, the shipped U-Net"),
            ("digits_code_schedule", "digits, the released code's rates"),
        )
        if (found := results.get(name)) is not None
    ]
    header = [
        "test images",
        "bound, learned last step",
        "full-covariance Gaussian",
        "lead",
        "best K of a chain on Gaussian data",
        "importance weighting adds",
        "training, s",
    ]
    return [
        "### Images against a Gaussian",
        "",
        "Bits per pixel of standardised images; the lead is per event, both on the same "
        "test images.",
        "",
        *table(header, rows),
    ]


def posteriors(results: dict[str, Any]) -> list[str]:
    if "paper_mode" not in results:
        return []
    rows = [
        [name, *(_pair(laws.get(law)) for law in LAWS)]
        for name, laws in results["paper_mode"].items()
        if isinstance(laws, dict)
    ]
    return [
        "### Multiplying distributions, where the answer is known",
        "",
        "Mean and variance after 1000 steps, for a prior N(0, 1) and one observation 1, "
        "and for two unit Gaussians of which one is known to be 1.",
        "",
        *table(["", *LAWS], rows),
    ]


LAWS = ("paper, product", "paper, mean shift", "corrected, moments", "exact")


def _pair(moments: list[float] | None) -> str:
    return "-" if moments is None else f"{moments[0]:.4f}, {moments[1]:.4f}"


def multiplied(results: dict[str, Any]) -> list[str]:
    rows = [
        [
            name.removeprefix("multiply_"),
            label,
            number(row["rmse"]),
            number(row["spread"]),
            number(row["coverage"], row["coverage_standard_error"], 2),
            number(row["coverage_if_exact"], digits=2),
        ]
        for name, found in results.items()
        if name.startswith("multiply_")
        for label, row in found.items()
        if isinstance(row, dict)
    ]
    if not rows:
        return []
    header = [
        "prior",
        "task and method",
        "error of the mean",
        "spread of the draws",
        "coverage",
        "nominal coverage",
    ]
    return [
        "### Multiplying distributions, on images",
        "",
        "Root mean squares over the pixels to be found, in standardised units. Coverage is "
        "of the truth by the pixelwise 90 % interval of the draws: too narrow a spread "
        "shows as a coverage below nominal.",
        "",
        *table(header, rows),
    ]


def gaussian(results: dict[str, Any]) -> list[str]:
    if "gaussian" not in results:
        return []
    rows = [
        [
            name,
            number(row["K_by_points"], digits=5),
            number(row["K_closed_form"], digits=5),
            number(row["K_drawn"], row["standard_error"], digits=3),
            number(row["L"], digits=5),
            number(row["minus_entropy"], digits=5),
        ]
        for name, row in results["gaussian"].items()
        if isinstance(row, dict)
    ]
    header = [
        "data and schedule",
        "K, the library's terms",
        "K, closed form",
        "K, drawn",
        "L of the chain",
        "-H(data)",
    ]
    return ["### Gaussian data", "", "Bits per event.", "", *table(header, rows)]


def report(results: dict[str, Any]) -> str:
    """Everything, as Markdown."""
    lines = [*table_1(results), *table_2(results), *cifar10(results)]
    lines += [*images(results), *gaussian(results)]
    lines += [*posteriors(results), *multiplied(results)]
    stamps = sorted({f"{r['date']}, {r['machine']}" for r in results.values()})
    lines += ["Run on " + "; ".join(stamps) + "."]
    return "\n".join(lines) + "\n"


def main(run: bool = False, write: bool = False, quick: bool = False) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if quick else None
        for name in SCRIPTS if run else ():
            print(f"== {name}", flush=True)
            importlib.import_module(name).main(quick=quick, out=out)
        path = RESULTS if out is None else out / "results.json"
        text = report(json.loads(path.read_text()))
    if write and not quick:
        DOCUMENT.write_text(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="store_true", help="run every script first")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    parser.add_argument("--quick", action="store_true", help="with --run: tiny numbers")
    sys.stdout.write(main(**vars(parser.parse_args())))
