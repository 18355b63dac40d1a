"""Execute the notebooks of the gallery: each source becomes a page and a notebook.

A source is a script in cells, `docs/gallery/NAME.py`: "# %% [markdown]" opens a text and
"# %%" a code cell, whose picture has a title in words, as in `# %% alt="A curve."`. Out of
one run come `NAME.md` for the site, `NAME.ipynb` to take away, and the pictures
`docs/images/gallery/NAME_1.png`, ...

    pip install ".[gallery]"
    python docs/make_gallery.py                 # all of them, about ten minutes
    python docs/make_gallery.py quick_start     # one
"""

import argparse
import base64
import datetime
import os
import pathlib
import platform
from importlib.metadata import version

import jupytext
import nbformat
from nbclient import NotebookClient

GALLERY = pathlib.Path(__file__).parent / "gallery"
IMAGES = pathlib.Path(__file__).parent / "images" / "gallery"


def executed(source):
    """The notebook of a source with its outputs, and its seconds of processor time.

    Not the clock's, which other work on the machine lengthens.
    """
    notebook = jupytext.read(source)
    before = os.times()
    NotebookClient(
        notebook, timeout=3600, kernel_name="python3", coalesce_streams=True
    ).execute()
    after = os.times()  # the kernel is a child, and has ended
    seconds = sum(after[2:4]) - sum(before[2:4])
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # clock times, which change with each run
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if is_shown(one)]
    return notebook, seconds


def is_shown(output):
    """Not what libraries say to the terminal, of devices and of their own future."""
    return output.output_type != "stream" or output.name == "stdout"


def signature(seconds):
    """When, on what, and how long."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpyro"))
    return (
        f"Run on {datetime.date.today().isoformat()}, in about {seconds:.0f} seconds of "
        f"processor time; {os.cpu_count()} CPU cores, {platform.machine()}, Python "
        f"{platform.python_version()}, {packages}."
    )


def page(name, notebook, seconds):
    """The Markdown of a notebook; its pictures are written on the way."""
    parts, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                pictures += 1
                path = IMAGES / f"{name}_{pictures}.png"
                path.write_bytes(base64.b64decode(output.data["image/png"]))
                alt = cell.metadata["alt"]
                parts.append(f"![{alt}](../images/gallery/{path.name})")
    files = f"[notebook]({name}.ipynb), [script]({name}.py)"
    return "\n\n".join([*parts, f"*{signature(seconds)} Take it: {files}.*\n"])


def main():
    """Make all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted(path.stem for path in GALLERY.glob("*.py"))
    parser.add_argument("names", nargs="*", default=known, metavar="NAME")
    IMAGES.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        notebook, seconds = executed(GALLERY / f"{name}.py")
        for old in IMAGES.glob(f"{name}_*.png"):
            old.unlink()
        (GALLERY / f"{name}.md").write_text(page(name, notebook, seconds))
        nbformat.write(notebook, GALLERY / f"{name}.ipynb")
        print(f"{name}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
