"""Files and folders that are whole or not there: python -m pytest tests/test_files.py"""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

import files
from errors import UserError
from files import (
    check_output,
    check_writable,
    durably,
    file_digest,
    locked,
    put_in_place,
    read_json,
    read_text,
    read_yaml,
    remove_abandoned,
    temporary_folder,
    write_atomically,
)
from tests.launch import ROOT


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
        folder_with(tmp_path / ".place.old", "of a killed process")
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
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_written_is_known_by_size_and_digest(tmp_path):
    content = bytes(range(256)) * 9000  # more than one buffer
    written = write_atomically(tmp_path / "step_1", lambda file: [file.write(content[:7]), file.write(content[7:])])
    assert written == (len(content), hashlib.sha256(content).hexdigest())
    assert file_digest(tmp_path / "step_1") == written


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "planted").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError), durably(tmp_path / "planted"):
        pass
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "lock", "trains"):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"


@contextmanager
def another_process(code):
    """Runs `code` and waits for a word on its stdin; yields when it has printed a line, and kills it at the end."""
    code = f"from pathlib import Path\nfrom files import *\n{code}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout.readline() == "here\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path):
    lock = tmp_path / "run/.lock"
    hold = f"with locked(Path({str(lock)!r}), 'trains here'): print('here', flush=True); input()"
    with another_process(hold) as process:
        with pytest.raises(UserError) as refused, locked(lock, "trains here"):
            pass
        assert f"another process trains here: process {process.pid} on " in str(refused.value)
        assert json.loads(lock.read_text())["pid"] == process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with locked(lock, "trains here"):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert os.listdir(lock.parent) == []
    with locked(tmp_path / "new/folder/.lock", "trains here"):
        pass
    assert os.listdir(tmp_path) == ["run"]  # what was made for the lock and stays empty goes with it


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    place = tmp_path / "data"
    write = f"with temporary_folder(Path({str(place)!r})) as f: (f / 'x').touch(); print('here', flush=True); input()"
    wait = "print('here', flush=True); input()"
    half = f"write_atomically(Path({str(tmp_path / 'step_1')!r}), lambda file: ({wait.replace(';', ',')}))"
    whole = f"with written_beside(Path({str(tmp_path / 'step_2')!r}), lambda file: file.write(b'2')): {wait}"
    folder_with(tmp_path / ".data.of-mine", "not called as a temporary one")
    with another_process(write), another_process(half), another_process(whole):
        remove_abandoned(tmp_path)
        assert len(os.listdir(tmp_path)) == 4
    assert len(os.listdir(tmp_path)) == 4
    with temporary_folder(place) as folder:
        names = {".data.of-mine", folder.name}
        assert names < (left := set(os.listdir(tmp_path)))
        assert {name.split(".")[1] for name in left - names} == {"step_1", "step_2"}
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == [".data.of-mine"]


def test_a_file_that_was_taken_for_abandoned_is_begun_again(tmp_path, monkeypatch):
    """Somebody who looks for abandoned files sees it before it is locked."""
    lock, seen = files._lock_file, []

    def lock_too_late(file):
        if not seen:
            remove_abandoned(tmp_path)
        seen.append(file.raw.name)
        return lock(file)

    monkeypatch.setattr(files, "_lock_file", lock_too_late)
    write_atomically(tmp_path / "step_1", lambda file: file.write(b"whole"))
    assert contents(tmp_path) == {"step_1": "whole"}
    assert len(seen) == 2


def test_a_folder_that_was_aside_when_its_process_was_killed_comes_back(tmp_path):
    folder_with(tmp_path / ".place.old", "1")
    with temporary_folder(tmp_path / "place") as folder:
        assert contents(tmp_path / "place") == {"text": "1"}
        (folder / "text").write_text("2")
        put_in_place(folder, tmp_path / "place")
    assert os.listdir(tmp_path) == ["place"]
    assert contents(tmp_path / "place") == {"text": "2"}


def bomb(levels=9):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)])


UNREADABLE = {
    "UTF-16": ("{}".encode("utf-16"), r"is UTF-16 text; save it as UTF-8"),
    "Latin-1": ('{"name": "é"}'.encode("latin-1"), r"is not UTF-8 text \(byte 0xe9 at position 10\)"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"a pointer of Git LFS.*git lfs pull"),
    "large": (b" " * 2000, r"has 2,000 bytes, where at most 1,000 are expected; build it again$"),
}
NOT_JSON = {
    "nested": (b"[" * 999, r"nested too deeply; build it again$|is not JSON"),
    "cut short": (b'{"a":', r"is not JSON \(Expecting value: line 1 column 6 \(char 5\)\); build it again$"),
}
NOT_YAML = {
    "nested": (b"[" * 990, r"nested too deeply; build it again$|is not YAML"),
    "a billion laughs": (bomb().encode(), r"stands for more than 1,000 values"),
    "itself": (b"a: &a [*a]", r"stands for more than 1,000 values"),
    "tabs": (
        b"a:\n\tb: 1",
        r"is not YAML \(found character '\\t' that cannot start any token, line 2\); build it again$",
    ),
    "code": (b"!!python/object/apply:os.system [ls]", r"is not YAML \(could not determine a constructor .*\)"),
    "an empty number": (b'a: !!int ""', r"is not YAML"),
    "no truth": (b"a: !!bool x", r"is not YAML"),
    "a date that is none": (b"2026-13-45", r"is not YAML \(month must be in 1..12"),
}


@pytest.mark.parametrize("name", [*UNREADABLE, *NOT_JSON])
def test_what_is_not_json_is_refused_in_a_line(tmp_path, name):
    content, message = (UNREADABLE | NOT_JSON)[name]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_json(tmp_path / "file", "build it again", limit=1000)
    assert str(refused.value).startswith(f"{tmp_path / 'file'} ")


@pytest.mark.parametrize("name", [*UNREADABLE, *NOT_YAML])
def test_what_is_not_yaml_is_refused_in_a_line(tmp_path, name):
    content, message = (UNREADABLE | NOT_YAML)[name]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "file", "build it again", limit=1000)


def test_what_is_no_file_is_refused_in_a_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "nowhere", "is missing"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "pipe", "is not a file"),
    ):
        with pytest.raises(UserError, match=f"{message}; name another$"):
            read_text(path, "name another")


def test_text_with_a_byte_order_mark_and_yaml_with_aliases_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + json.dumps({"names": ["é", "ü"]}).encode())
    assert read_json(tmp_path / "file", "") == {"names": ["é", "ü"]}
    (tmp_path / "file").write_text("a: &a [1, 2]\nb: *a\n<<: {c: 3}\n")
    assert read_yaml(tmp_path / "file", "") == {"a": [1, 2], "b": [1, 2], "c": 3}
    (tmp_path / "file").write_text("")
    assert read_yaml(tmp_path / "file", "") is None


OUTPUTS = {
    "no suffix": ("step_60", b"weights", "must end in .json; name a new file"),
    "another kind": ("all_config.yaml", b"seed: 7", "must end in .json; name a new file"),
    "something else": ("identifiers.json", b'["<blank>"]', "is there and holds something else; name a new file"),
    "a pipe": ("pipe.json", None, "is there and is no file; name a new one"),
    "another folder": ("nowhere/out.json", b"", "cannot write submission=.*; name a file in a folder that exists"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_does_not_replace_something_else(tmp_path, name):
    place, content, message = OUTPUTS[name]
    path = tmp_path / place
    if content is None:
        os.mkfifo(path)
    elif path.parent == tmp_path:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_output(path, "submission", ".json", start=b'{"')
    assert content is None or not path.exists() or path.read_bytes() == content


def test_an_output_replaces_an_earlier_one(tmp_path):
    check_output(tmp_path / "new.json", "submission", ".json", start=b'{"')
    for content in (b'{"007bbfb7": []}', b""):
        (tmp_path / "old.JSON").write_bytes(content)
        check_output(tmp_path / "old.JSON", "submission", ".json", start=b'{"')


def test_without_locks_there_is_a_warning_and_nothing_is_taken_for_abandoned(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / ".step_1.0123abcd.tmp").touch()
    with locked(tmp_path / ".lock", "trains here"), locked(tmp_path / ".lock", "trains here"):
        remove_abandoned(tmp_path)
    assert "this file system has no locks; see to it that no other process trains here" in caplog.text
    assert os.listdir(tmp_path) == [".step_1.0123abcd.tmp"]
    with temporary_folder(tmp_path / "place") as folder:
        put_in_place(folder, tmp_path / "place")
    assert sorted(os.listdir(tmp_path)) == [".step_1.0123abcd.tmp", "place"]
