"""From a model to a kernel: the questions of `suggest`, and of the picture in the docs.

Two trees of questions, the second for the guidance of particles. `suggest` walks them with
what it found in a model; `docs/make_decision_tree.py` draws them.
"""

import dataclasses
from collections.abc import Callable

from numpyro_diffusion.infer.choice.likelihood_kind import Kind
from numpyro_diffusion.infer.choice.traits import Traits

__all__ = ["GUIDANCE", "KERNEL", "Answer", "Leaf", "Question", "decide", "nodes"]

MANY_ENTRIES, FEW_CLASSES = 256, 4
"""Entries of a large event, and numbers of the few discrete latents."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An end of a tree.

    Attributes:
        key: By which code finds it.
        title: The kernel, or what to do.
        note: What it gives.
    """

    key: str
    title: str
    note: str


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with two answers.

    Attributes:
        text: As the picture has it.
        holds: Whether it is so in a model.
        yes: What comes if it is.
        no: What comes if it is not.
        why_yes: The reason that this answer gives, if it gives one.
        why_no: Likewise.
    """

    text: str
    holds: Callable[[Traits], bool]
    yes: "Question | Leaf"
    no: "Question | Leaf"
    why_yes: Callable[[Traits], str] | None = None
    why_no: Callable[[Traits], str] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a walk through a tree came to.

    Attributes:
        leaf: Its end.
        questions: What was asked on the way, with the answers.
        reasons: What these say for that end.
    """

    leaf: Leaf
    questions: tuple[tuple[str, bool], ...]
    reasons: tuple[str, ...]


def decide(root: Question | Leaf, traits: Traits) -> Answer:
    """Walk a tree.

    Args:
        root: Where to start.
        traits: What was found in a model.
    """
    node, questions, reasons = root, [], []
    while isinstance(node, Question):
        holds = node.holds(traits)
        questions.append((node.text, holds))
        why = node.why_yes if holds else node.why_no
        if why is not None:
            reasons.append(why(traits))
        node = node.yes if holds else node.no
    return Answer(node, tuple(questions), tuple(reasons))


def nodes(root: Question | Leaf) -> list[Question | Leaf]:
    """All nodes of a tree, each once, in the order of a walk that tries "yes" first."""
    found: list[Question | Leaf] = []

    def visit(node: Question | Leaf) -> None:
        if any(node is known for known in found):
            return
        found.append(node)
        if isinstance(node, Question):
            visit(node.yes)
            visit(node.no)

    visit(root)
    return found


def named(names: tuple[str, ...]) -> str:
    """Names in a sentence."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)


def _beside(traits: Traits) -> str:
    found = traits.continuous or traits.latents
    return (
        f"{named(found)} {'moves' if len(found) == 1 else 'move'} beside the site, by "
        "blocks that see its value: calibrated together with NUTS in 400 simulated data "
        "sets (docs/accuracy.md)"
    )


def _travels(traits: Traits) -> str:
    gradients = "" if traits.is_smooth else ", and NUTS would want gradients"
    return (
        f"{named(traits.latents)} can be drawn from {_their(traits)} and travel with the "
        f"particles{gradients}"
    )


def _their(traits: Traits) -> str:
    return "its prior" if len(traits.latents) == 1 else "their priors"


PLAIN = Leaf("plain", "NUTS", "NumPyro's own kernels do")
MEND = Leaf("mend", "Mend it first", "suggest says what is missing")
DRAWS = Leaf("draws", "Predictive", "draws of the prior")
FLOW = Leaf("flow", "NUTS through FlowReparam", "all latents move at once")
MARGINAL = Leaf("marginal", "ParticleMarginal", "site and context in one move")
SMC = Leaf("smc", "TwistedSMC", "independent draws and the evidence")
GIBBS = Leaf("gibbs", "ParticleGibbs", "exact, as a block beside NUTS")

_BESIDE_KERNEL = Question(
    "Is NUTS to move them: gradients,\nmany labels, an improper prior?",
    lambda traits: (
        bool(traits.improper or traits.between)
        or (traits.num_discrete > FEW_CLASSES)
        or bool(traits.continuous and (traits.is_smooth or traits.kind is Kind.VALUES))
    ),
    yes=GIBBS,
    no=SMC,
    why_yes=_beside,
    why_no=_travels,
)
_OTHERS = Question(
    "Are there other latents\n(a noise scale, a gain, a label)?",
    lambda traits: bool(traits.latents),
    yes=_BESIDE_KERNEL,
    no=SMC,
    why_no=lambda traits: (
        "nothing but the site is unknown: one run of particles gives independent draws and "
        "log p(y), as good as exact draws on 25 Gaussians (distance 0.27 of 0.20 in 8 "
        "dimensions, evidence within 0.08 nat; docs/accuracy.md)"
    ),
)
_JOINTLY = Question(
    "Several sites that cannot move\nas one (bits, other num_steps)?",
    lambda traits: not traits.moves_jointly,
    yes=GIBBS,
    no=_OTHERS,
    why_yes=lambda traits: (
        f"{named(traits.sites)} cannot move as one (bits and letters, or chains of "
        "different num_steps, cannot): each has a block of its own"
    ),
)
_CONTEXT = Question(
    "Does a latent, say a class, steer\nthe context of the prior?",
    lambda traits: bool(traits.steering) and not traits.endless,
    yes=MARGINAL,
    no=_JOINTLY,
    why_yes=lambda traits: (
        f"the prior depends on {named(traits.steering)}: given the site's whole trajectory "
        "that hardly moves, so that both are proposed in one, and taken by the ratio of "
        "evidences (for classes 1.8 standard errors off at most, "
        "docs/class_conditional_table.md)"
    ),
)
_CHAIN = Question(
    "Does the prior lack a chain or a\nmeasured error, or do latents steer\n"
    "more of it than its context?",
    lambda traits: traits.lacks is not None or not traits.fixed_but_context,
    yes=MEND,
    no=_CONTEXT,
)
_LARGE = Question(
    "Hundreds of entries, and the error\nnot measured by components?",
    lambda traits: traits.num_entries >= MANY_ENTRIES and not traits.has_components,
    yes=FLOW,
    no=_CHAIN,
    why_yes=lambda traits: (
        f"{traits.num_entries} entries are many for particles that do not know how errors "
        "go together (docs/symptoms/one-particle.md); through the flow 1024 cells came out "
        "at 1.12 of the distance of exact draws, R-hat 1.007 (docs/accuracy.md)"
    ),
)
_BETWEEN = Question(
    "Does a latent lie between\nthe site and the data?",
    lambda traits: bool(set(traits.between) & set(traits.continuous)),
    yes=FLOW,
    no=_LARGE,
    why_yes=lambda traits: (
        f"{named(traits.between)} {'lies' if len(traits.between) == 1 else 'lie'} between "
        "the site and the data, bound to both: NUTS moves all of them at once, blocks "
        "would take turns"
    ),
)
_STEERED = Question(
    "Does a number, or another site,\nsteer the prior?",
    lambda traits: bool(set(traits.steering) & {*traits.continuous, *traits.sites}),
    yes=FLOW,
    no=_BETWEEN,
    why_yes=lambda traits: (
        f"the prior depends on {named(traits.steering)}, which NUTS draws jointly with the "
        "noise behind the site, by gradients (docs/conditional.md, calibrated in "
        "simulations)"
    ),
)
_DISTILLED = Question(
    "Is the prior distilled?",
    lambda traits: traits.is_distilled,
    yes=FLOW,
    no=_STEERED,
    why_yes=lambda traits: (
        "the prior has the flow's map in few network calls, so that a gradient costs next "
        "to nothing: 93 effective draws a second for fields of 16 x 16 cells "
        "(docs/conditional.md)"
    ),
)
_GRADIENTS = Question(
    "Is the site real, under a likelihood\nwith gradients?",
    lambda traits: traits.has_flow and traits.is_smooth,
    yes=_DISTILLED,
    no=_CHAIN,
    why_no=lambda traits: (
        "the site takes finitely many values, so that nothing can be differentiated in it"
        if not traits.is_real
        else f"the likelihood is {traits.kind.value}: weights need no gradient"
        if not traits.is_smooth
        else "the reverse process knows one grid only, and no flow"
    ),
)
_SEEN = Question(
    "Is anything observed?",
    lambda traits: bool(traits.observed),
    yes=_GRADIENTS,
    no=DRAWS,
    why_no=lambda traits: "nothing is observed: the posterior is the prior",
)
_FAULT = Question(
    "A subsampled plate, unmasked NaN,\na masked or scaled prior?",
    lambda traits: traits.fault is not None,
    yes=MEND,
    no=_SEEN,
)
KERNEL = Question(
    "Is a latent drawn from a\nDiffusionPrior?",
    lambda traits: bool(traits.sites),
    yes=_FAULT,
    no=PLAIN,
    why_no=lambda traits: "no latent comes from a DiffusionPrior",
)
"""From a model to a kernel."""

VALUE_TILT = Leaf("values", "ValueTilt()", "the default over values")
AVERAGED = Leaf("averaged", "Averaged()", "takes no gradient, and more particles")
TWEEDIE = Leaf("tweedie", "MomentMatching(Tweedie())", "the network's own covariance")
MEASURED = Leaf("measured", "MomentMatching()", "the default, and the cheapest")

_COUPLED = Question(
    "Do sums or blurs tie entries, with no\ncomponents of the error measured?",
    lambda traits: traits.likelihood.couples and not traits.has_components,
    yes=TWEEDIE,
    no=MEASURED,
    why_yes=lambda traits: (
        "the data tie entries together, and the twist needs the right width for that: with "
        "Tweedie's covariance the evidence of one sum was 0.08 nat off at worst, without "
        "0.28 (docs/accuracy.md)"
    ),
)
_VALUES = Question(
    "Bits, letters or classes?",
    lambda traits: not traits.is_real,
    yes=VALUE_TILT,
    no=_COUPLED,
    why_yes=lambda traits: (
        "each entry's probabilities are tilted by what its values say to the likelihood, "
        "exact where that factorises over entries (docs/discrete.md)"
    ),
)
GUIDANCE = Question(
    "Can the likelihood be zero, or has it\nno slope (limits, ranks, yes or no)?",
    lambda traits: traits.kind in (Kind.FLAT, Kind.LIMITED),
    yes=AVERAGED,
    no=_VALUES,
    why_yes=lambda traits: (
        "a twist averaged over draws of x_0 needs no slope, and sees past a likelihood of "
        "zero at the denoised mean (slcp: C2ST 0.563 of 0.504, docs/accuracy.md)"
    ),
)
"""From a model to the guidance of its particles."""
