"""Draw the questions that lead from a model to a kernel: `images/decision_tree.svg`.

They are those of `numpyro_diffusion.infer.suggest`, read from its own trees. One row for
each question, in an order in which answers lead down only; an answer that ends leads to the
right.

    python docs/make_decision_tree.py
"""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from numpyro_diffusion.infer.choice.decision import (
    GUIDANCE,
    KERNEL,
    Leaf,
    Question,
    nodes,
)

PICTURE = pathlib.Path(__file__).parent / "images" / "decision_tree.svg"
ROW, WIDE, HIGH, LEAF, LEAF_X = 1.0, 3.8, 0.72, 3.5, 4.6
INCHES = 0.74  # of one row
COLOURS = {
    "plain": "#e8e8e8",
    "mend": "#f6d9d5",
    "draws": "#e8e8e8",
    "flow": "#d5e8d4",
    "marginal": "#fdebc8",
    "smc": "#d4e4f7",
    "gibbs": "#e5d8f0",
}
ASK = """Or ask, with your model and its data:
    print(nd.infer.suggest(model, y))
It says which of these, with which
settings, why, and code that runs."""
INK, PAPER, GUIDE = "#333333", "#fafafa", "#eef2f5"


def questions(root):
    """The questions of a tree, each after all that lead to it."""
    order = []

    def visit(node):
        if isinstance(node, Question) and not any(node is known for known in order):
            visit(node.yes)
            visit(node.no)
            order.append(node)

    visit(root)
    return order[::-1]


def described(root):
    """A tree in words: each question with where its answers lead."""
    name = lambda node: node.title if isinstance(node, Leaf) else node.text
    return [
        {"question": node.text, "yes": name(node.yes), "no": name(node.no)}
        for node in nodes(root)
        if isinstance(node, Question)
    ]


def box(axes, x, y, width, height, colour, text, **style):
    """A rounded box with a text in its middle."""
    patch = FancyBboxPatch(
        (x, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=colour,
        edgecolor=INK,
        linewidth=0.7,
    )
    axes.add_patch(patch)
    middle = {"ha": "center", "va": "center", "color": INK, "linespacing": 1.15}
    axes.text(x + width / 2, y, text, **{**middle, "fontsize": 9.5, **style})


def arrow(axes, start, end, label, at):
    """An arrow, with the answer that leads along it."""
    line = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=10,
        linewidth=0.9,
        color=INK,
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(line)
    axes.text(*at, label, fontsize=9, style="italic", color=INK, va="center")


def leaf_box(axes, x, y, leaf, height=HIGH):
    """The end of a way."""
    colour = COLOURS.get(leaf.key, GUIDE)
    box(axes, x, y, LEAF, height, colour, "")
    text = {"ha": "center", "va": "center", "color": INK}
    axes.text(x + LEAF / 2, y + 0.13, leaf.title, fontsize=10, weight="bold", **text)
    axes.text(x + LEAF / 2, y - 0.14, leaf.note, fontsize=8, **text)


def ends(order):
    """Runs of rows whose ends to the right are the same: rows, answer and leaf."""
    found = []
    for row, node in enumerate(order):
        answers = [(a, n) for a, n in (("yes", node.yes), ("no", node.no))]
        leaves = [(a, n) for a, n in answers if isinstance(n, Leaf)]
        if not leaves:
            continue
        answer, leaf = leaves[0]
        if found and found[-1][2] is leaf and found[-1][0][-1] == row - 1:
            found[-1][0].append(row)
        else:
            found.append(([row], answer, leaf))
    return found


def draw(axes, root, x, top):
    """One tree, from the top down."""
    order = questions(root)
    height = {id(node): top - row * ROW for row, node in enumerate(order)}
    for number, node in enumerate(order, 1):
        y = height[id(node)]
        box(axes, x, y, WIDE, HIGH, PAPER, node.text)
        axes.text(x + 0.1, y + 0.22, f"{number}", fontsize=7.5, color="#888888")
        for answer, then in (("yes", node.yes), ("no", node.no)):
            if isinstance(then, Leaf):
                continue
            low, next_y = y - HIGH / 2, height[id(then)]
            middle = x + WIDE / 2
            if next_y == y - ROW:
                end = (middle, next_y + HIGH / 2)
                arrow(axes, (middle, low), end, answer, (middle + 0.1, low - 0.16))
            else:
                place = (x - 0.36, y + 0.12)
                axes.plot([x, x - 0.4, x - 0.4], [y, y, next_y], color=INK, lw=0.9)
                arrow(axes, (x - 0.4, next_y), (x, next_y), answer, place)
    for rows, answer, leaf in ends(order):
        ys = [height[id(order[row])] for row in rows]
        tall = HIGH + ys[0] - ys[-1]
        leaf_box(axes, x + LEAF_X, sum(ys) / len(ys), leaf, tall)
        for y in ys:
            place = (x + WIDE + 0.45, y + 0.12)
            arrow(axes, (x + WIDE, y), (x + LEAF_X, y), answer, place)
    last = order[-1]
    y, middle = height[id(last)], x + WIDE / 2
    leaf_box(axes, middle - LEAF / 2, y - ROW, last.no)
    end = (middle, y - ROW + HIGH / 2)
    arrow(axes, (middle, y - HIGH / 2), end, "no", (middle + 0.1, y - HIGH / 2 - 0.16))
    return y - ROW


def figure():
    """The tree of kernels, and below it that of guidance, as wide as a page's text."""
    drawn, axes = plt.subplots()
    title = {"fontsize": 12.5, "weight": "bold", "color": INK}
    axes.text(0.0, 0.62, "Which kernel?", **title)
    low = draw(axes, KERNEL, 0.0, 0.0)
    said = {"fontsize": 9.5, "color": INK, "va": "center", "linespacing": 1.4}
    axes.text(LEAF_X, low - 0.15, ASK, **said)
    below = low - 2.4
    axes.text(0.0, below + 1.0, "Which guidance of its particles?", **title)
    of = "for TwistedSMC, ParticleGibbs and ParticleMarginal"
    axes.text(0.0, below + 0.66, of, fontsize=8.5, color=INK)
    end = draw(axes, GUIDANCE, 0.0, below)
    xlim, ylim = (-0.6, LEAF_X + LEAF + 0.1), (end - 0.5, 0.9)
    axes.set(xlim=xlim, ylim=ylim, position=(0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    drawn.set_size_inches(INCHES * np.ptp(xlim), INCHES * np.ptp(ylim))
    return drawn


def main() -> None:
    """Draw, and put the trees into the file in words as well."""
    with plt.rc_context(
        {"svg.hashsalt": "decision tree", "font.family": "DejaVu Sans"}
    ):
        words = json.dumps([described(KERNEL), described(GUIDANCE)])
        figure().savefig(
            PICTURE,
            bbox_inches="tight",
            pad_inches=0.08,
            metadata={"Date": None, "Description": words},
        )


if __name__ == "__main__":
    main()
