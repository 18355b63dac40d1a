"""Call everything exported with one wrong argument at a time, and say what comes of it.

A program, run by `test_wrong_arguments` with plain Python: under pytest jaxtyping would
refuse wrong arguments before the library does, and users have no such hook. It prints JSON.

Each call of `right_calls` is repeated with each of its arguments replaced by values that
are wrong for it. Four things can come of a call:

- `clear`: an error that says who was called and which argument is wrong;
- `right`: a result without a NaN, for some of the values are not wrong everywhere;
- `silent`: a NaN in the result that the right call does not have;
- `internal`: any other error, from somewhere deep inside, or no end in a few seconds.
"""

import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import signal
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import numpyro_diffusion as nd

SECONDS = 60  # for one call, of which most take milliseconds
HUGE = 10**12

# The types that an error may have if it is meant for the caller; KeyError and
# AttributeError, for instance, are not among them.
TYPES = (
    *(ValueError, TypeError, FloatingPointError, RuntimeError),
    *(FileNotFoundError, NotImplementedError),
)
# These name the file, which is the argument.
OF_FILES = (
    FileNotFoundError,
    nd.saving.archive.ArchiveError,
    nd.datasets.DataFileError,
)


class TooLongError(Exception):
    """A call did not end."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one call.

    Attributes:
        row: Name of the call in the table.
        argument: The argument that was replaced.
        value: By what, in words.
        kind: clear, right, silent or internal.
        message: The error, if there was one.
    """

    row: str
    argument: str
    value: str
    kind: str
    message: str = ""


def wrong_values(right):
    """Values to put in the place of a right one, by name, chosen by its kind."""
    anything = {"None": None, "a text": "text", "an object": object()}
    if right is None:
        return {"a text": "text", "an object": object(), "nan": np.nan}
    if isinstance(right, bool):
        return anything | {"nan": np.nan}
    if isinstance(right, int | np.integer):
        numbers = {"nan": np.nan, "-1": -1, "0": 0, "10**12": HUGE, "2.5": 2.5}
        return anything | numbers | {"True": True}
    if isinstance(right, float):
        numbers = {"nan": np.nan, "-1": -1.0, "0": 0.0, "1e300": 1e300, "1e-40": 1e-40}
        return anything | numbers | {"an array": np.full(3, right), "True": True}
    if isinstance(right, str | pathlib.Path):
        return {"None": None, "a text": "no such thing", "3": 3, "an object": object()}
    if _is_key(right):
        return anything | {"3": 3, "nan": np.nan}
    if isinstance(right, jax.Array | np.ndarray):
        return anything | _wrong_arrays(np.asarray(right))
    if isinstance(right, tuple | list):
        return anything | _wrong_tuples(right)
    if callable(right) and not isinstance(right, type):
        return anything | {"3": 3, "a class": int}
    return anything | {"3": 3, "an array": np.zeros(2)}


def _is_key(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )


def _wrong_arrays(right):
    found = {
        "one axis more": right[..., None],
        "another length": np.concatenate([right, right]) if right.ndim else [right] * 2,
        "empty": np.zeros((0, *right.shape[1:]), right.dtype),
        "texts": np.full(right.shape, "text"),
        "complex": right.astype(complex) + 1j,
        "nan": np.full(right.shape, np.nan),
        "negative": -1.0 - np.abs(right.astype(float)),
        "zeros": np.zeros_like(right),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def _wrong_tuples(right):
    found = {"empty": (), "nan": (np.nan,) * len(right), "a number": 3}
    if all(isinstance(item, int) for item in right):
        found |= {"-1": (-1,) * len(right), "0": (0,) * len(right)}
        found |= {"10**12": (HUGE,) * len(right)}
    return found


def arguments_of(row):
    """The arguments of a row's callable that are to be replaced, with right values."""
    found = dict(row.arguments)
    for name, parameter in inspect.signature(row.call).parameters.items():
        has_default = parameter.default is not inspect.Parameter.empty
        if name not in found and has_default:
            found[name] = parameter.default
    return found


def missing_arguments(row):
    """Arguments of a row's callable that have no default and no right value in the row."""
    parameters = inspect.signature(row.call).parameters.values()
    return [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and p.name not in row.arguments
    ]


def num_nans(result):
    """How many NaNs there are in a result, whatever it is made of."""
    if isinstance(result, xr.Dataset):
        result = {name: v.values for name, v in result.variables.items()}
    elif isinstance(result, xr.DataTree):
        return sum(num_nans(node.dataset) for node in result.subtree)
    total = 0
    for leaf in jax.tree.leaves(result):
        is_array = isinstance(leaf, float | np.ndarray | np.generic | jax.Array)
        if is_array and not _is_key(leaf):
            values = np.asarray(leaf)
            if jnp.issubdtype(values.dtype, jnp.inexact):
                total += int(np.sum(np.isnan(values)))
    return total


def result_of(row, arguments):
    """Call, and use what comes back in the way that the row says."""
    result = row.call(**arguments)
    if isinstance(result, types.GeneratorType):
        result = list(result)
    return result if row.use is None else row.use(result)


def is_clear(row_name, argument, error, names):
    """Whether an error says who was called and which argument is wrong."""
    if isinstance(error, OF_FILES):
        return True
    message = str(error)
    if not isinstance(error, TYPES):
        return False
    parts = row_name.split(".")
    speakers = [p for p in parts if f"{p}:" in message or f"{p}." in message]
    if speakers and re.search(rf"\b({'|'.join(speakers)})(\.\w+)?: ", message):
        return True
    others = re.search(r"\b(\w+)(\.\w+)?: ", message)
    is_ours = others is not None and others[1] in names
    return is_ours and re.search(rf"\b{argument}\b", message) is not None


def outcome_of(name, row, argument, value_name, value, nans, names):
    """Call with one argument replaced and classify what comes of it."""
    arguments = {**row.arguments, argument: value}
    told = name, argument, value_name
    signal.alarm(SECONDS)
    try:
        result = result_of(row, arguments)
        is_silent = num_nans(result) > nans and not row.carries_nans
        kind = "silent" if is_silent else "right"
        return Outcome(*told, kind)
    except (Exception, TooLongError) as error:
        kind = "clear" if is_clear(name, argument, error, names) else "internal"
        message = f"{type(error).__name__}: {error}".split("\n")[0]
        return Outcome(*told, kind, message[:200])
    finally:
        signal.alarm(0)


def run(rows, names):
    """All outcomes of a table of calls.

    Raises:
        RuntimeError: A right call fails.
    """
    for name, row in rows.items():
        try:
            nans = num_nans(result_of(row, row.arguments))
        except Exception as error:
            raise RuntimeError(f"the right call of {name} fails: {error!r}") from error
        for argument, right in arguments_of(row).items():
            for value_name, value in wrong_values(right).items():
                if argument in row.none_is_right and value is None:
                    continue
                yield outcome_of(name, row, argument, value_name, value, nans, names)


def main(chosen):
    """Print the outcomes of the rows whose names hold one of some words (all if none)."""
    from right_calls import CONTROLS, ROWS, exported

    for part in ("models", "inference", "plotting"):
        importlib.import_module(f"right_calls_of_{part}")

    def alarmed(*_):
        raise TooLongError(f"no end in {SECONDS} seconds")

    signal.signal(signal.SIGALRM, alarmed)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    table = {**ROWS, **CONTROLS}
    rows = {n: r for n, r in table.items() if not chosen or any(c in n for c in chosen)}
    names = {name.split(".")[-1] for name in (*exported(), *ROWS)}
    outcomes = [dataclasses.asdict(outcome) for outcome in run(rows, names)]
    missing = {n: m for n, row in ROWS.items() if (m := missing_arguments(row))}
    absent = sorted(set(exported()) - set(ROWS))
    json.dump({"outcomes": outcomes, "missing": missing, "absent": absent}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
