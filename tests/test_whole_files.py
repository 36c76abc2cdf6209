"""Files appear under their final names when they are whole, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vae_core.errors import InputError
from vae_core.whole_files import whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_keeps_its_ending_while_it_is_written(tmp_path):
    with whole(tmp_path / "a.png") as part:
        assert part.parent == tmp_path and part.suffix == ".png"
        part.write_text("done")
        assert not (tmp_path / "a.png").exists()
    assert names(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_a_file_has_ordinary_permissions_whoever_writes_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole(tmp_path / "a.txt") as part:
            part.write_text("private")
            part.chmod(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_an_interruption_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "a.txt", overwrite=True) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_what_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(InputError, match="already exists"), whole(tmp_path / "a.txt") as part:
        part.write_text("ours")
        (tmp_path / "a.txt").write_text("theirs")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "theirs"


def test_a_file_is_never_put_in_place_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a folder"), whole(tmp_path / "a", overwrite=True):
        pass
    assert names(tmp_path) == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"), whole(tmp_path / "nowhere" / "a.txt"):
        pass
