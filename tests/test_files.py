"""Writing files whole or not at all."""

import pytest

from fiited_jax.files import replace_file


def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "name"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
