"""What the MovieLens reader says of files that it cannot use."""

import gzip
import math

import numpy as np
import pytest

from fiited_jax.data import DataError, MovieLensStream
from movielens_rows import (
    as_csv,
    as_dat,
    make_ratings,
    movies_dat,
    users_dat,
    write,
    write_folder,
)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,6", "column rating is '6', must be 1, 2, 3, 4 or 5"),
        ("1,2,0", "column rating is '0'"),
        ("1,2,4.5", "column rating is '4.5'"),
        ("1,2,04", "column rating is '04'"),
        ("1,2,", "column rating is ''"),
        ("x,2,5", "column user is 'x', must be an integer of 1 to 18 digits"),
        (",2,5", "column user is ''"),
        ("-1,2,5", "column user is '-1'"),
        ("+1,2,5", r"column user is '\+1'"),
        ("1, 2,5", "column movie is ' 2'"),
        ("1,1" + "0" * 18 + ",5", "column movie is '1000000000000000000'"),
        ('1,"2",5', "column movie is '\"2\"'"),
        ("1,2", "has 2 columns, must have 3 separated by commas"),
        ("1,2,3,4", "has 4 columns"),
        ("", "has 1 columns"),
        ("1::2::3::4", "has 1 columns, must have 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    lines = as_csv(make_ratings(30)).splitlines()
    lines[16] = line
    path = write(tmp_path / "ml" / "bad.csv", "\n".join(lines))
    with pytest.raises(DataError, match=rf"bad\.csv: line 17,? {message}"):
        MovieLensStream(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1::2::6::9", "column rating is '6'"),
        ("1::2::5::", "column timestamp is '', must be an integer"),
        ("1::2::5::noon", "column timestamp is 'noon'"),
        ("1::2::5", "has 3 columns, must have 4 separated by ::"),
        ("1,2::5::9", "has 3 columns"),
        ("1\x1f2::5::9", "has 3 columns"),
        ("1,2,5,9", "has 1 columns"),
        ("1:2::5::9", "has 3 columns"),
    ],
)
def test_a_bad_line_of_ratings_dat_is_named(tmp_path, line, message):
    lines = as_dat(make_ratings(30)).splitlines()
    lines[16] = line
    write(tmp_path / "ml" / "ratings.dat", "\n".join(lines))
    with pytest.raises(DataError, match=rf"ratings\.dat: line 17,? {message}"):
        MovieLensStream(tmp_path / "ml")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("users.dat", "99::X::1::1::12345", "line 31, column gender is 'X', must be F"),
        ("users.dat", "99::M::?::1::12345", r"line 31, column age is '\?'"),
        ("users.dat", "99::M::1::::12345", "line 31, column occupation is ''"),
        (
            "users.dat",
            "99::M::1::1::V3N4P",
            "column zip code is 'V3N4P', must be",
        ),
        ("users.dat", "99::M::1::1", "line 31 has 4 columns, must have 5 separated"),
        ("users.dat", "07::M::1::1::12345", "line 31 is a second one for 7"),
        ("movies.dat", "x::Title::", "line 21, column movie is 'x'"),
        ("movies.dat", "99::Title", "line 21 has 2 columns, must have 3"),
        ("movies.dat", "101::Title::", "line 21 is a second one for 101"),
    ],
)
def test_a_bad_line_beside_the_ratings_is_named(tmp_path, name, line, message):
    path = write_folder(tmp_path / "ml", make_ratings())
    with (path / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        MovieLensStream(path)


def test_users_and_movies_without_a_line(tmp_path):
    path = write_folder(tmp_path / "ml", make_ratings())
    write(path / "movies.dat", movies_dat(range(100, 119)))
    with pytest.raises(DataError, match=r"movies\.dat: has no line for movie 119"):
        MovieLensStream(path)
    write(path / "users.dat", users_dat(range(2, 31)))
    with pytest.raises(DataError, match=r"users\.dat: has no line for user 1, must"):
        MovieLensStream(path)
    write(path / "users.dat", b"")
    with pytest.raises(DataError, match=r"users\.dat: is empty"):
        MovieLensStream(path)


def test_a_pair_that_comes_twice(tmp_path):
    ratings = make_ratings(60)
    path = write_folder(tmp_path / "ml", ratings, folds=True)
    user, movie, _ = ratings[0]
    write(path / "test_9.csv", f"{user},{movie},1\n")
    with pytest.raises(DataError, match=f"user {user} rates movie {movie} twice"):
        MovieLensStream(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none: cannot be read \(.*No such file"):
        MovieLensStream(tmp_path / "none")
    with pytest.raises(DataError, match=r"aaa: cannot be read \(.*too long"):
        MovieLensStream(tmp_path / ("a" * 300))
    folder = tmp_path / "ml"
    folder.mkdir()
    write(folder / "users.dat", users_dat())
    with pytest.raises(DataError, match=r"ml: has neither ratings\.dat nor test_"):
        MovieLensStream(folder)
    for content in (b"", gzip.compress(b"")):
        with pytest.raises(DataError, match=r"ratings\.dat: is empty"):
            MovieLensStream(write(folder / "ratings.dat", content))
    with pytest.raises(DataError, match=r"1 rows .* each split needs at least 1"):
        MovieLensStream(write(folder / "ratings.dat", "1,2,3\n"), 0.5)
    content = gzip.compress(as_dat(make_ratings()).encode())
    for keep in (2, 12, len(content) // 2, len(content) - 1):
        write(folder / "ratings.dat", content[:keep])
        with pytest.raises(DataError, match=r"ratings\.dat: cannot be read .*gzip"):
            MovieLensStream(folder)
    garbage = np.random.default_rng(0).bytes(1 << 16)
    with pytest.raises(DataError, match=r"ratings\.dat: line 1 has"):
        MovieLensStream(write(folder / "ratings.dat", garbage))


def test_arguments_are_checked(tmp_path):
    path = write_folder(tmp_path / "ml", make_ratings(20))
    for fraction in (0, 1, -0.2, math.nan):
        with pytest.raises(ValueError, match=r"test_fraction is .* above 0"):
            MovieLensStream(path, fraction)
    with pytest.raises(ValueError, match="seed is -1"):
        MovieLensStream(path, seed=-1)
    with pytest.raises(ValueError, match="split is 'all'"):
        MovieLensStream(path).batches("all", 8)  # pyright: ignore[reportArgumentType]
