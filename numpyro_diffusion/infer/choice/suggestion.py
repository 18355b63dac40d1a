"""A suggested kernel: what it is, why, and the code that runs it."""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from numpyro.infer import MCMC

from numpyro_diffusion.infer.choice.plans import Plan
from numpyro_diffusion.infer.choice.recipes import (
    Call,
    Name,
    Statement,
    called,
    carried_out,
    printed,
)
from numpyro_diffusion.infer.choice.traits import Traits

__all__ = ["Suggestion"]

_OWN_NAMES = {"model", "marked", "flow_model", "kernel", "mcmc", "smc", "jax", "nd"}


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Suggestion:
    """Which kernel serves a model, with which settings, and why; `suggest` makes it.

    It prints as a page: the kernel, its settings, the reasons, what else would do, what to
    do before, and code that runs where `model` and its arguments have the names that they
    have in the model's signature.

    Attributes:
        name: The kernel, in words; None if none serves the model as it is.
        settings: Settings of the kernel and of its run, by name.
        reasons: Why, a sentence each, with the measured figure where there is one.
        alternatives: What else would do, and when.
        preparations: What would make it better, if done before.
        missing: What stands between the model and any kernel; None if nothing does.
        traits: What was found in the model.
        questions: What was asked on the way, with the answers, as in the picture of the
            documentation.
    """

    name: str | None
    settings: Mapping[str, Any]
    reasons: tuple[str, ...]
    alternatives: tuple[str, ...]
    preparations: tuple[str, ...]
    missing: str | None
    traits: Traits
    questions: tuple[tuple[str, bool], ...]
    _plan: Plan | None
    _model: Callable
    _args: tuple
    _kwargs: Mapping[str, Any]

    @property
    def code(self) -> str:
        """Python code, from the imports to the draws; empty if no kernel serves."""
        if self._plan is None:
            return ""
        statements = self._statements()
        functions = called([statement.value for statement in statements])
        # In the order of isort: words in capitals first.
        names = sorted(
            (name for name in functions if "." not in name),
            key=lambda name: (not name.isupper(), name),
        )
        imports = ["import jax"]
        if any(name.startswith("nd.") for name in functions):
            imports.append("import numpyro_diffusion as nd")
        if names:
            imports.append(f"from numpyro.infer import {', '.join(names)}")
        lines = [*map(printed, statements), *self._running()]
        return "\n".join([*imports, "", *lines, ""])

    def kernel(self) -> Any:
        """The kernel that the code builds; a `TwistedSMC`, or a `Predictive`, likewise.

        Raises:
            ValueError: No kernel serves the model.
        """
        plan = self._served()
        names: dict[str, Any] = {"model": self._model}
        for statement in self._statements():
            if statement.target == "mcmc":
                break
            names[str(statement.target)] = carried_out(statement.value, names)
        return names[plan.target]

    def mcmc(
        self, num_warmup: int | None = None, num_samples: int | None = None
    ) -> MCMC:
        """The kernel in an `MCMC`, to run with a key and the model's arguments.

        Args:
            num_warmup: Draws of warm-up; by default as in `settings`.
            num_samples: Draws; by default as in `settings`.

        Raises:
            ValueError: No kernel serves the model, or what serves it is none of MCMC.
        """
        plan = self._served()
        if plan.runs != "mcmc":
            raise ValueError(
                f"Suggestion.mcmc: the suggestion must be an MCMC kernel, got {self.name}; "
                "call what kernel() returns."
            )
        given = {"num_warmup": num_warmup, "num_samples": num_samples}
        changes = {name: value for name, value in given.items() if value is not None}
        chosen = self.with_settings(**changes)
        call = chosen._mcmc_call()
        return carried_out(call, {"kernel": chosen.kernel(), "jax.vmap": jax.vmap})

    def with_settings(self, **changes: Any) -> "Suggestion":
        """The same with other settings, which the code follows.

        Args:
            **changes: New values of some of `settings`.

        Raises:
            ValueError: A name is none of the settings.
        """
        unknown = sorted(set(changes) - set(self.settings))
        if unknown:
            raise ValueError(
                "Suggestion.with_settings: settings must be among "
                f"{sorted(self.settings)}, got {unknown}."
            )
        settings = types.MappingProxyType({**self.settings, **changes})
        return dataclasses.replace(self, settings=settings)

    def __repr__(self) -> str:
        if self.missing is not None:
            parts = [("Missing", [self.missing])]
        else:
            parts = [("Settings", [_shown(self.settings)]), ("Why", self.reasons)]
        parts += [("Or", self.alternatives), ("Before", self.preparations)]
        lines = [f"Suggestion: {self.name or 'no kernel serves this model as it is'}"]
        for title, sentences in parts:
            lines += [f"{title}:", *(f"  - {line}" for line in sentences)] * bool(
                sentences
            )
        if self.code:
            lines += [
                "Code:",
                *(f"  {line}".rstrip() for line in self.code.splitlines()),
            ]
        return "\n".join(lines)

    def _served(self) -> Plan:
        if self._plan is None:
            raise ValueError(
                f"Suggestion: a kernel must serve the model: {self.missing}."
            )
        return self._plan

    def _statements(self) -> list[Statement]:
        plan = self._served()
        found = plan.statements(self.traits, self.settings)
        if plan.runs == "mcmc":
            found.append(Statement("mcmc", self._mcmc_call()))
        return found

    def _mcmc_call(self) -> Call:
        own = ("num_warmup", "num_samples", "num_chains", "chain_method")
        settings = {name: self.settings[name] for name in own}
        if isinstance(settings["chain_method"], Name):  # a function, which has no bar
            settings["progress_bar"] = False
        return Call("MCMC", MCMC, (Name("kernel"),), settings)

    def _running(self) -> list[str]:
        """How what was built is run, and its draws are read."""
        arguments = ", ".join(["jax.random.key(0)", *self._arguments()])
        plan = self._served()
        if plan.runs == "predictive":
            return [f"draws = predictive({arguments})"]
        if plan.runs == "smc":
            return [
                f"posterior = smc.run({arguments})",
                "draws = posterior.get_samples()",
                "print(posterior.log_evidence_total, posterior.ess[-1])",
            ]
        return [f"mcmc.run({arguments})", "mcmc.print_summary()"]

    def _arguments(self) -> list[str]:
        """The model's arguments, by the names that its signature gives them."""
        given = inspect.signature(self._model)
        names = list(given.parameters)[: len(self._args)]
        kinds = [given.parameters[name].kind for name in names]
        has_names = len(names) == len(self._args) and all(
            kind
            in (
                inspect.Parameter.POSITIONAL_ONLY,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
            )
            for kind in kinds
        )
        if not has_names or _OWN_NAMES & {*names, *self._kwargs}:
            return ["*args"] * bool(self._args) + ["**kwargs"] * bool(self._kwargs)
        return [*names, *(f"{name}={name}" for name in self._kwargs)]


def _shown(settings: Mapping[str, Any]) -> str:
    said = {name: value for name, value in settings.items() if value is not None}
    return ", ".join(
        printed(Statement(name, v)).replace(" = ", "=") for name, v in said.items()
    )
