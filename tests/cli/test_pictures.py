"""Which picture is drawn follows from the event, not from how many were seen."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import numpyro_diffusion as nd
from numpyro_diffusion.cli.observation import Observation
from numpyro_diffusion.cli.pictures import save_posterior

CASES = {  # shape of an event, of what was seen, panels
    "vector": ((3,), (3,), 1),
    "vectors": ((3,), (4, 3), 1),
    "image": ((4, 5), (4, 5), 7),
    "narrow images": ((4, 3), (6, 4, 3), 42),
    "colours": ((4, 5, 3), (4, 5, 3), 7),
    "many images": ((4, 5), (20, 4, 5), 56),
    "volume": ((2, 4, 5), (2, 4, 5), 1),
}


def prior_of(shape, scaling=None):
    """Of independent entries."""
    forward = nd.GaussianForward(nd.schedules.cosine())
    reverse = nd.DenoisingReverse(forward, lambda x, t: x, nd.DataPrediction())
    return nd.DiffusionPrior(reverse, shape, 4, scaling=scaling)


def test_entries_of_unlike_scales_are_drawn_in_those_of_the_prior(
    tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    scaling = nd.datasets.Scaling(np.array([20.0, 1100.0]), np.array([3.0, 17.0]))
    seen = Observation(np.array([23.0, 0.0]), np.array([True, False]), None)
    draws = np.broadcast_to([[26.0, 1083.0]], (2, 5, 2))
    save_posterior(tmp_path / "a.png", seen, draws, prior_of((2,), scaling))
    (axis,) = figures[0].axes
    drawn, given = (line.get_ydata() for line in axis.lines)
    np.testing.assert_allclose(np.unique(np.round(drawn, 5)), [-1.0, 2.0])
    np.testing.assert_allclose(given, [1.0], rtol=1e-6)
    assert axis.get_ylabel() == "standard deviations of the prior, from its mean"


@pytest.mark.parametrize("name", CASES)
def test_each_event_gets_its_kind_of_picture(name, tmp_path, monkeypatch):
    event_shape, shape, num_panels = CASES[name]
    figures = []
    save = Figure.savefig
    keep = lambda figure, *args, **kwargs: (
        figures.append(figure),
        save(figure, *args, **kwargs),
    )
    monkeypatch.setattr(Figure, "savefig", keep)
    rng = np.random.default_rng(0)
    seen = Observation(rng.normal(size=shape), rng.random(shape) < 0.5, None)
    draws = rng.normal(size=(2, 5, *shape))
    save_posterior(tmp_path / "a.png", seen, draws, prior_of(event_shape))
    assert len(figures[0].axes) == num_panels
    assert (tmp_path / "a.png").stat().st_size > 1000
