import matplotlib
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing may be shown, or set for the rest of the program."""

    def show(*args, **kwargs):
        raise AssertionError("a picture was shown")

    monkeypatch.setattr(plt, "show", show)
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before
