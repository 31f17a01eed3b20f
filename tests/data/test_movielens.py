"""The MovieLens reader on generated files: order, values, layouts, cache."""

import gzip

import numpy as np
import pytest

from fiited_jax.data import Batch, MovieLensStream, Vocabulary
from movielens_rows import (
    as_csv,
    as_dat,
    expected,
    make_ratings,
    movies_dat,
    users_dat,
    write,
    write_folder,
)
from stream_checks import assert_same, joined, whole


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("compress", [True, False])
def test_values_in_every_layout(tmp_path, folds, compress):
    ratings = make_ratings()
    path = write_folder(tmp_path / "ml", ratings, folds=folds, compress=compress)
    stream = MovieLensStream(path)
    assert (stream.num_train, stream.num_test) == (180, 20)
    assert (stream.name, stream.num_dense, stream.num_tables) == ("movielens", 1, 10)
    assert stream.bayes() is None
    assert_same(whole(stream), expected(ratings))
    assert_same(whole(stream), expected(ratings))  # a second epoch


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr("fiited_jax.data.movielens._BLOCK", 8)
    monkeypatch.setattr("fiited_jax.data.movielens._BLOCK_BYTES", 50)
    ratings = make_ratings()
    stream = MovieLensStream(write_folder(tmp_path / "ml", ratings))
    assert_same(whole(stream), expected(ratings))


def test_batch_size_does_not_matter(tmp_path):
    stream = MovieLensStream(write_folder(tmp_path / "ml", make_ratings(50)))
    train = joined(stream, "train", 45)
    for batch_size in (1, 3, 44, 46):
        assert_same(joined(stream, "train", batch_size), train)


def test_batches_may_be_written_to(tmp_path):
    stream = MovieLensStream(write_folder(tmp_path / "ml", make_ratings(50)))
    before = whole(stream)
    for batch in stream.batches("train", 45):
        for array in batch:
            array[:] = 0
    assert_same(whole(stream), before)


def test_order_in_the_file_does_not_matter_but_the_seed_does(tmp_path):
    ratings = make_ratings()
    path = write(tmp_path / "one" / "r.csv", as_csv(ratings))
    again = write(tmp_path / "two" / "r.csv", as_csv(ratings[::-1]))
    first = whole(MovieLensStream(path))
    assert_same(whole(MovieLensStream(again)), first)
    other = whole(MovieLensStream(path, seed=1))
    assert np.any(other.ids != first.ids)
    np.testing.assert_array_equal(
        np.unique(other.ids, axis=0), np.unique(first.ids, axis=0)
    )


@pytest.mark.parametrize(
    ("users", "movies", "columns"),
    [
        (True, True, range(10)),
        (True, False, range(6)),
        (False, True, [0, 1, 6, 7, 8, 9]),
        (False, False, [0, 1]),
    ],
)
def test_tables_follow_the_files_beside_the_ratings(tmp_path, users, movies, columns):
    ratings = make_ratings(60)
    path = write(tmp_path / "ml" / "ratings_of_mine", as_csv(ratings))
    if users:
        write(tmp_path / "ml" / "users.dat", users_dat())
    if movies:
        write(tmp_path / "ml" / "movies.dat", movies_dat())
    stream = MovieLensStream(path, 0.5)
    assert stream.num_tables == len(columns)
    wanted = expected(ratings)
    wanted = Batch(wanted.labels, wanted.dense, wanted.ids[:, list(columns)])
    assert_same(whole(stream), wanted)
    train = Vocabulary.from_batches([wanted.ids[:30]], len(columns))
    for found, ids in zip(stream.vocabulary().tables, train.tables, strict=True):
        np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("encode", [as_csv, as_dat])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_line_ends_and_compression(tmp_path, encode, compress):
    ratings = make_ratings(40)
    content = encode(ratings).replace("\n", "\r\n").rstrip().encode()
    path = write(tmp_path / "ml" / "r", compress(content))
    found = whole(MovieLensStream(path))
    np.testing.assert_array_equal(found.ids, expected(ratings).ids[:, :2])


def test_ratings_dat_goes_before_folds(tmp_path):
    path = write_folder(tmp_path / "ml", make_ratings(90), sides=False)
    write_folder(path, make_ratings(60, seed=1), folds=True, sides=False)
    stream = MovieLensStream(path)
    assert stream.num_train + stream.num_test == 90


def test_the_vocabulary_is_kept_while_no_file_changes(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "ml", make_ratings())
    made = []
    make = Vocabulary.from_batches

    def counting(batches, num_tables):
        made.append(num_tables)
        return make(batches, num_tables)

    monkeypatch.setattr(Vocabulary, "from_batches", counting)
    first = MovieLensStream(path).vocabulary()
    second = MovieLensStream(path).vocabulary()
    assert len(made) == 1
    assert second.num_pairs == first.num_pairs
    MovieLensStream(path, seed=1).vocabulary()
    MovieLensStream(path, 0.3).vocabulary()
    assert len(made) == 3
    write(path / "users.dat", users_dat(range(1, 40)))
    MovieLensStream(path).vocabulary()
    assert len(made) == 4
    for file in (tmp_path / "cache").iterdir():
        Vocabulary([np.arange(2)]).save(file)  # of another number of tables
    assert MovieLensStream(path).vocabulary().num_pairs == first.num_pairs
    (path / "users.dat").unlink()
    assert MovieLensStream(path).vocabulary().num_tables == 6
