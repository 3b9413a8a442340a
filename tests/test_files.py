"""JSON is there whole, or as it was."""

import errno
import json
import os

import pytest

from fingerbench import files


def test_json_takes_the_place_of_what_was_there(tmp_path):
    for content in ({"a": [1, None, "é"]}, {"b": 2.5}):
        files.write_json(tmp_path / "a.json", content)
        assert json.loads((tmp_path / "a.json").read_bytes()) == content
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_what_cannot_be_written_leaves_what_was_there_alone(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", 1)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(tmp_path / "a.json", 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"] and (tmp_path / "a.json").read_text() == "1\n"
