r"""A Gaussian random field on a torus, of which everything is known.

Matern covariance with smoothness 1, unit variance and a length of three pixels: more pixels
are more field, not a finer one. On a torus Fourier modes are independent, with variances
$S_k \propto (\kappa^2 + |\omega_k|^2)^{-2}$, so that the denoiser is a filter for any size:

$$\hat x_0 = F^{-1} \frac{\sqrt{\bar\alpha} S}{\bar\alpha S + \sigma_t^2} F x_t$$

The left half is observed in noise of a known or unknown scale; the posterior and the law of
the scale follow from the eigenvectors of the covariance of what is seen. What is seen goes
round the torus along the rows, so that a Fourier transform along them leaves one small
matrix for each frequency.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array

import numpyro_diffusion as nd

LENGTH, TRUE_SCALE, SCALE_PRIOR = 3.0, 0.3, 1.0
# Components of the denoising error, as `fit` would measure them: all of a small field's.
MAX_COMPONENTS = 512


def spectrum(side: int) -> np.ndarray:
    """Variances of the modes of `rfft2`, in units in which white noise has ones."""
    rows = 2 * np.pi * np.fft.fftfreq(side)[:, None]
    columns = 2 * np.pi * np.fft.rfftfreq(side)[None, :]
    shape = (1.0 / LENGTH**2 + rows**2 + columns**2) ** -2.0
    return shape / np.fft.irfft2(shape, (side, side))[0, 0]


class Filter(eqx.Module):
    """The exact denoiser of a field, or of its modes each alone."""

    schedule: Any
    spectrum: Array
    of_modes: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Array, t: Array) -> Array:
        kept, noise = self.schedule.alpha_bar(t), self.schedule.noise(t)
        gain = jnp.sqrt(kept) * self.spectrum / (kept * self.spectrum + noise)
        if self.of_modes:
            return gain * x
        return jnp.fft.irfft2(gain * jnp.fft.rfft2(x), x.shape)


def largest_modes(side: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Real Fourier modes of most variance, of length one, and their variances."""
    variances, half, found = spectrum(side), side // 2, []
    for i, j in np.ndindex(side, half + 1):
        if j in (0, half) and i > half:
            continue  # the conjugate of one that is there
        is_real = i in (0, half) and j in (0, half)
        found += [(variances[i, j], i, j, v) for v in ([1.0] if is_real else [1, 1j])]
    found = sorted(found, key=lambda mode: -mode[0])[:num]
    coefficients = np.zeros((len(found), side, half + 1), complex)
    for row, (_, i, j, value) in enumerate(found):
        coefficients[row, i, j] = value
    modes = np.fft.irfft2(coefficients, (side, side))
    modes /= np.sqrt(np.sum(modes**2, axis=(1, 2), keepdims=True))
    return modes, np.array([mode[0] for mode in found])


def make_prior(side: int, num_steps: int) -> nd.DiffusionPrior:
    """The field as it would be with a trained network of no error."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    modes = spectrum(side)
    times = np.arange(1, 101) / 100
    kept = np.asarray(forward.schedule.alpha_bar(times))[:, None, None]
    noise = np.asarray(forward.schedule.noise(times))[:, None, None]
    # A mode inside of the half plane stands for two.
    doubled = np.full(modes.shape, 2.0)
    doubled[:, [0, -1]] = 1.0
    left = doubled * modes * noise / (kept * modes + noise)
    values = left.sum((1, 2)) / side**2
    directions, along = largest_modes(side, min(side**2, MAX_COMPONENTS))
    along = along * noise[:, :, 0] / (kept[:, :, 0] * along + noise[:, :, 0])
    single = lambda values: jnp.asarray(values, jnp.float32)
    reverse = nd.DenoisingReverse(
        forward,
        Filter(forward.schedule, single(modes)),
        nd.DataPrediction(),
        nd.DenoisingError(
            single(times),
            single(values),
            components=nd.ErrorComponents(single(directions), single(along)),
        ),
    )
    return nd.DiffusionPrior(reverse, (side, side), num_steps)


def flow_modes(side: int, reparam: nd.infer.FlowReparam) -> np.ndarray:
    """Variances of the modes of what the flow draws, whose steps leave an error."""
    forward, modes = nd.GaussianForward(nd.schedules.cosine()), spectrum(side)
    network = Filter(forward.schedule, jnp.asarray(modes, jnp.float32), of_modes=True)
    reverse = nd.DenoisingReverse(forward, network, nd.DataPrediction())
    prior = nd.DiffusionPrior(reverse, modes.shape, 50)
    return np.asarray(reparam.decode(prior, jnp.ones(modes.shape)), np.float64) ** 2


class Field(NamedTuple):
    """One observed field.

    Attributes:
        truth: Shape (side, side).
        y: The left half in noise, shape (side, side // 2).
        eigenvalues: Of the covariance of the left half, for each frequency along the rows,
            shape (side, side // 2).
        eigenvectors: Likewise, shape (side, side // 2, side // 2).
    """

    truth: np.ndarray
    y: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @classmethod
    def draw(cls, side: int, seed: int = 0) -> "Field":
        rng = np.random.default_rng([seed, side])
        truth = _prior_draw(rng, side)
        y = truth[:, : side // 2]
        y = y + TRUE_SCALE * rng.standard_normal(y.shape)
        return cls(truth, y, *of_left_half(spectrum(side)))

    @property
    def side(self) -> int:
        return len(self.truth)

    def scale_law(self) -> tuple[np.ndarray, np.ndarray]:
        """Scales, evenly spaced, and their posterior probabilities."""
        scales = np.linspace(0.02, 1.5, 1500)
        along = np.abs(self._along(self.y)) ** 2
        variances = self.eigenvalues + scales[:, None, None] ** 2
        log_density = -0.5 * np.sum(along / variances + np.log(variances), axis=(1, 2))
        log_density -= 0.5 * (scales / SCALE_PRIOR) ** 2
        weights = np.exp(log_density - log_density.max())
        return scales, weights / weights.sum()

    def posterior(
        self, rng: np.random.Generator, num: int, scale: float | None
    ) -> np.ndarray:
        """Exact draws, shape (num, side, side); of the scale too, if it is None."""
        if scale is None:
            given, weights = self.scale_law()
            scales = rng.choice(given, num, p=weights)
        else:
            scales = np.full(num, scale)
        return np.stack([self._one(rng, s) for s in scales])

    def _one(self, rng: np.random.Generator, scale: float) -> np.ndarray:
        """A draw of field and data, moved by what the data were off."""
        x, half = _prior_draw(rng, self.side), self.side // 2
        off = self.y - x[:, :half] - scale * rng.standard_normal(self.y.shape)
        solved = self._along(off) / (self.eigenvalues + scale**2)
        spread = np.zeros_like(x)
        spread[:, :half] = np.fft.ifft(
            np.einsum("kce,ke->kc", self.eigenvectors, solved), axis=0, norm="ortho"
        ).real
        return x + np.fft.irfft2(spectrum(self.side) * np.fft.rfft2(spread), x.shape)

    def _along(self, seen: np.ndarray) -> np.ndarray:
        """Coordinates of a left half along the eigenvectors."""
        rows = np.fft.fft(seen, axis=0, norm="ortho")
        return np.einsum("kce,kc->ke", self.eigenvectors, rows)


def of_left_half(modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the covariance of a left half, as `Field` has them.

    Args:
        modes: Variances of the modes of `rfft2` of the whole.
    """
    side = len(modes)
    of_rows = np.fft.fft(np.fft.irfft2(modes, (side, side)), axis=0).real
    column = np.arange(side // 2)
    return np.linalg.eigh(of_rows[:, (column[:, None] - column[None, :]) % side])


def _prior_draw(rng: np.random.Generator, side: int) -> np.ndarray:
    white = np.fft.rfft2(rng.standard_normal((side, side)))
    return np.fft.irfft2(np.sqrt(spectrum(side)) * white, (side, side))


def model(prior: Any, scale: Any, y: Any = None) -> None:
    """The left half of a field in noise, of unknown scale if that is None."""
    if scale is None:
        scale = numpyro.sample("sigma", dist.HalfNormal(SCALE_PRIOR))
    x = numpyro.sample("x", prior)
    half = prior.event_shape[1] // 2
    numpyro.sample("y", dist.Normal(x[:, :half], scale).to_event(2), obs=y)
