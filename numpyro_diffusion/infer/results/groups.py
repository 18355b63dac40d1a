"""Values of a model's sites as the groups of ArviZ's data, on both of its lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Shaped

from numpyro_diffusion.model.sites import named_dims

__all__ = ["CALLER", "SAMPLE_DIMS", "Layout", "completed", "observations"]

CALLER = "to_arviz"
SAMPLE_DIMS = ("chain", "draw")


class Layout:
    """Names of the dimensions of a model's sites, and their coordinates.

    Args:
        sites: A trace of the model.
        dims: Names of the last dimensions of sites, by site.
        coords: Coordinates along dimensions, by name.

    Raises:
        TypeError: `dims` or `coords` is no mapping.
        ValueError: A name is of no site, a site has fewer dimensions than names, or the
            name of a site has a slash.
    """

    def __init__(
        self,
        sites: Mapping[str, Any],
        dims: Mapping[str, Sequence[str]] | None,
        coords: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        for argument, value in (("dims", dims), ("coords", coords)):
            if not (value is None or isinstance(value, Mapping)):
                raise TypeError(
                    f"{CALLER}: {argument} must be a mapping of names, got {value!r}."
                )
        self.sites, self.names = sites, named_dims(sites)
        self.coords = {
            name: np.asarray(along) for name, along in (coords or {}).items()
        }
        slashes = sorted(name for name in self.names if "/" in name)
        if slashes:
            raise ValueError(
                f"{CALLER}: the names of sites must have no '/', which names groups in "
                f"files, got {slashes}; use numpyro.handlers.scope(model, prefix, "
                'divider=".").'
            )
        for name, last in (dims or {}).items():
            self._name_last(name, last)

    def _name_last(self, name: str, last: Sequence[str]) -> None:
        if name not in self.names:
            raise ValueError(
                f"{CALLER}: dims must be of sites of the model, which are "
                f"{sorted(self.names)}, got {name!r}."
            )
        own = self.names[name]
        is_names = not isinstance(last, str) and all(isinstance(n, str) for n in last)
        if not is_names or len(last) > len(own):
            raise ValueError(
                f"{CALLER}: dims of {name!r} must be names of its last dimensions, of "
                f"which it has {len(own)}, got {last!r}."
            )
        own[len(own) - len(last) :] = last

    def dataset(
        self,
        values: Mapping[str, Any],
        leading: Sequence[str] = (),
        dims: Mapping[str, Sequence[str]] | None = None,
        attrs: Mapping[str, Any] | None = None,
        coords: Mapping[str, np.ndarray] | None = None,
    ) -> Any:
        """One group.

        Args:
            values: Arrays by name.
            leading: Names of their first dimensions.
            dims: Names of all others, where they are not those of the site.
            attrs: Attributes of the group.
            coords: Coordinates of this group alone.

        Returns:
            An `xarray.Dataset`.

        Raises:
            ValueError: Two arrays have different lengths along a dimension of one name, or
                there are more or fewer coordinates.
        """
        import xarray as xr

        variables, lengths = {}, {}
        for name, value in values.items():
            array = storable(value)
            own = {**self.names, **(dims or {})}.get(name)
            if own is None or len(own) != array.ndim - len(leading):
                own = [f"{name}_dim_{i}" for i in range(array.ndim - len(leading))]
            variables[name] = ([*leading, *own], array)
            for dim, length in zip(variables[name][0], array.shape, strict=True):
                other, owner = lengths.setdefault(dim, (length, name))
                if length != other:
                    raise ValueError(
                        f"{CALLER}: a dimension must have one length, got {other} of "
                        f"{dim!r} in {owner!r} and {length} in {name!r}; give them names "
                        "of their own."
                    )
        along = {**self.coords, **(coords or {})}
        for dim, (length, _) in lengths.items():
            if dim in along and len(along[dim]) != length:
                raise ValueError(
                    f"{CALLER}: coords of {dim!r} must be as many as the dimension is "
                    f"long, {length}, got {len(along[dim])}."
                )
        along = {dim: along.get(dim, np.arange(n)) for dim, (n, _) in lengths.items()}
        library = {"inference_library": "numpyro_diffusion"}
        return xr.Dataset(variables, along, {**library, **(attrs or {})})

    def check_coords(self, groups: Iterable[Any]) -> None:
        """Refuse coordinates of dimensions that no group has.

        Raises:
            ValueError: There are some.
        """
        known = {str(dim) for group in groups for dim in group.dims}
        unknown = sorted(set(self.coords) - known)
        if unknown:
            raise ValueError(
                f"{CALLER}: coords must be of dimensions that there are, {sorted(known)}, "
                f"got {unknown}; dims names those of a site."
            )


def storable(value: Any) -> Shaped[np.ndarray, "..."]:
    """An array of a type that files can hold; half precision becomes single."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def with_chains(
    what: str,
    values: Mapping[str, Any] | None,
    layout: Layout,
    shape: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Draws of `numpyro.infer.Predictive`, with axes of chains and draws in front.

    Args:
        what: Name of the argument, for errors.
        values: The draws by site, with one axis in front or with two.
        layout: Of the model.
        shape: Chains and draws that there must be; by default one chain of any length.

    Raises:
        TypeError: They are no mapping.
        ValueError: A name is of no site, or there are more or fewer draws.
    """
    if not (values is None or isinstance(values, Mapping)):
        raise TypeError(
            f"{CALLER}: {what} must be what Predictive returns, draws by name, got "
            f"{values!r}."
        )
    found = {}
    for name, value in (values or {}).items():
        if name not in layout.names:
            raise ValueError(
                f"{CALLER}: {what} must be of sites of the model, which are "
                f"{sorted(layout.names)}, got {name!r}."
            )
        array = np.asarray(value)
        num_leading = array.ndim - len(layout.names[name])
        if num_leading == 1:
            leading = (1, len(array)) if shape is None else shape
            if len(array) == leading[0] * leading[1]:
                array = array.reshape(*leading, *array.shape[1:])
        if array.ndim - len(layout.names[name]) != 2 or (
            shape is not None and array.shape[:2] != shape
        ):
            wanted = "draws" if shape is None else f"{shape[0]} x {shape[1]} draws"
            raise ValueError(
                f"{CALLER}: {what} must have {wanted} in front of each value, got shape "
                f"{array.shape} for {name!r}, whose values have "
                f"{len(layout.names[name])} dimensions."
            )
        found[name] = array
    return found


def observations(sites: Mapping[str, Any]) -> dict[str, Any]:
    """The observed sites of a trace that are data: `numpyro.factor` is none."""
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not isinstance(site["fn"], dist.Unit)
    }


def completed(
    layout: Layout,
    groups: dict[str, Any],
    prior: Mapping[str, Any] | None,
    posterior_predictive: Mapping[str, Any] | None,
) -> Any:
    """ArviZ's data of groups with a posterior, of given draws, and of what is observed.

    Returns:
        `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with 1.x.
    """
    import arviz as az
    import xarray as xr

    sizes = groups["posterior"].sizes
    shape = sizes["chain"], sizes["draw"]
    data = observations(layout.sites)
    drawn = with_chains("prior", prior, layout)
    found = {
        "posterior_predictive": with_chains(
            "posterior_predictive", posterior_predictive, layout, shape
        ),
        "prior": {name: v for name, v in drawn.items() if name not in data},
        "prior_predictive": {name: v for name, v in drawn.items() if name in data},
    }
    groups = {**groups}
    for group, values in found.items():
        if values:
            groups[group] = layout.dataset(values, SAMPLE_DIMS)
    if data:
        values = {name: site["value"] for name, site in data.items()}
        groups["observed_data"] = layout.dataset(values)
    layout.check_coords(groups.values())
    if az.__version__.startswith("0."):
        data_of_old: Any = az.InferenceData
        return data_of_old(**groups)
    return xr.DataTree.from_dict(groups)
