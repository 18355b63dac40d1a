"""Which picture is drawn follows from the event, not from how many were seen."""

import numpy as np
import pytest
from matplotlib.figure import Figure

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
    save_posterior(tmp_path / "a.png", seen, draws, event_shape)
    assert len(figures[0].axes) == num_panels
    assert (tmp_path / "a.png").stat().st_size > 1000
