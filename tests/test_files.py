"""Files and folders that are whole or not there: python -m pytest tests/test_files.py"""

import os

import pytest

from errors import UserError
from files import check_writable, put_in_place, write_atomically


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def half_written(error):
    def save(file):
        file.write(b"half")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError("no space"), ZeroDivisionError(), KeyboardInterrupt()])
def test_a_file_that_cannot_be_finished_leaves_the_one_before_it_alone(tmp_path, error):
    place = tmp_path / "best.json"
    write_atomically(place, lambda file: file.write(b"whole"))
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)) as raised:
        write_atomically(place, half_written(error))
    assert contents(tmp_path) == {"best.json": "whole"}
    if isinstance(error, OSError):
        assert str(raised.value) == f"cannot write {place}: no space"
    write_atomically(place, lambda file: file.write(b"newer"))
    assert contents(tmp_path) == {"best.json": "newer"}


def test_an_error_of_the_serialiser_is_one_of_writing(tmp_path):
    """`torch.save` raises RuntimeError where the disk refuses."""
    with pytest.raises(UserError, match=r"cannot write .*: unexpected pos 64 vs 0$"):
        write_atomically(tmp_path / "step_1", half_written(RuntimeError("unexpected pos 64 vs 0\nin a stack")))
    assert not contents(tmp_path)


def folder_with(path, text):
    path.mkdir()
    (path / "text").write_text(text)
    return path


@pytest.mark.parametrize("left_over", [False, True])
def test_a_folder_takes_the_place_of_another(tmp_path, left_over):
    new, place = folder_with(tmp_path / "new", "2"), folder_with(tmp_path / "place", "1")
    if left_over:
        folder_with(tmp_path / "new-old", "of a killed process")
    put_in_place(new, place)
    assert os.listdir(tmp_path) == ["place"]
    assert contents(place) == {"text": "2"}


def test_a_folder_that_cannot_take_its_place_leaves_the_other_there(tmp_path):
    place = folder_with(tmp_path / "place", "1")
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "gone", place)
    assert os.listdir(tmp_path) == ["place"]
    assert contents(place) == {"text": "1"}


def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, create in ((tmp_path / "nowhere", False), (tmp_path / "file/below", True)):
        with pytest.raises(UserError, match=rf"cannot write figures: .* \({folder}\); set out$"):
            check_writable(folder, "figures", "set out", create=create)
    check_writable(tmp_path / "made/deep", "figures", "set out", create=True)
    assert os.listdir(tmp_path / "made/deep") == []
