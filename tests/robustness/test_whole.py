"""Full disks, two writers, and writers that end in the middle."""

import errno
import os
import threading
import time

import numpy as np
import pytest
from faults import disk_full_after

import numpyro_diffusion as nd
from numpyro_diffusion.saving import whole
from numpyro_diffusion.saving.archive import ArchiveError, read_archive, write_archive


@pytest.fixture
def path(tmp_path):
    write_archive(tmp_path / "a.nd", {"from": "before"}, {"a": np.arange(10)})
    return tmp_path / "a.nd"


@pytest.mark.parametrize("size", [0, 10, 48, 500, 5000])
def test_a_disk_that_fills_up_leaves_the_old_file(path, size):
    old, message = path.read_bytes(), r"a\.nd could not be written: .*is unchanged"
    with pytest.raises(OSError, match=message), disk_full_after(size):
        nd.save(path, np.zeros(1000))
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named_for_what_it_is(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a name of no interest")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"b\.nd could not be written: No space"
    ) as caught:
        nd.save(tmp_path / "b.nd", 1)
    assert caught.value.errno == errno.ENOSPC
    assert "unchanged" not in str(caught.value)  # there was none
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.nd could not be written: No such"):
        nd.save(tmp_path / "nowhere" / "b.nd", 1)


def test_of_two_writers_one_has_written(path):
    """Read while both write: never a mixture, never a part."""
    num, seen = 60, set()

    def write(number):
        for _ in range(num):
            write_archive(path, {"from": number}, {"a": np.full(3000, number)})

    writers = [threading.Thread(target=write, args=(n,)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        header, arrays = read_archive(path)
        seen.add(header["from"])
        if header["from"] != "before":
            np.testing.assert_array_equal(arrays["a"], np.full(3000, header["from"]))
    for writer in writers:
        writer.join()
    assert seen & {1, 2}
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_a_later_one(path):
    old, new, other = (
        path.with_name(name)
        for name in (f".{'a' * 32}.tmp", f".{'b' * 32}.tmp", ".mine.tmp")
    )
    for file in (old, new, other):
        file.write_bytes(b"part")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    os.utime(other, (hours_ago, hours_ago))
    nd.save(path, 1)
    assert set(path.parent.iterdir()) == {path, new, other}


# ---- Files made by hand


def test_lists_too_deep_in_one_another_are_refused(tmp_path, monkeypatch):
    """Python's own limit came through as a `RecursionError`."""

    def deep(*_):
        raise RecursionError

    nd.save(tmp_path / "a.nd", [1])
    monkeypatch.setattr(nd.saving.files, "_decode", deep)
    with pytest.raises(ArchiveError, match="too deep in one another"):
        nd.load(tmp_path / "a.nd")


def test_a_card_that_is_no_dictionary_is_refused(path):
    write_archive(path, {"kind": "checkpoint", "object": 1, "card": [1]}, {})
    with pytest.raises(ArchiveError, match=r"a dictionary as card, got \[1\]"):
        nd.read_card(path)
