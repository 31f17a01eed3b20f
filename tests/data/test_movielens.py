"""The MovieLens reader on generated files: order, values, layouts, errors, cache."""

import gzip
import math
import zlib

import numpy as np
import pytest

from fiited_jax.data import Batch, DataError, MovieLensStream, Vocabulary
from stream_checks import assert_same, joined, whole

GENRES = ["Action", "Children's", "Comedy", "Drama", "Sci-Fi"]


def make_ratings(count=200, seed=0):
    """Return distinct (user, movie, rating), in random order."""
    generator = np.random.default_rng(seed)
    pairs = generator.permutation(30 * 20)[:count]
    return [(p // 20 + 1, p % 20 + 100, generator.integers(1, 6)) for p in pairs]


def as_csv(ratings):
    return "".join(f"{user},{movie},{stars}\n" for user, movie, stars in ratings)


def as_dat(ratings):
    return "".join(
        f"{user}::{movie}::{stars}::{978300000 + number}\n"
        for number, (user, movie, stars) in enumerate(ratings)
    )


def user_of(number):
    gender, code = "MF"[number % 2], ["48067", "02138-1234", ""][number % 3]
    return gender, 18 + number % 4, number % 7, code


def movie_of(number):
    title = f"Caf\u00e9 (film, 2), The ({1980 + number % 9})"
    return title if number % 5 else "Untitled", GENRES[: number % 6]


def users_dat(numbers=range(1, 31)):
    return "".join(
        "::".join(map(str, (number, *user_of(number)))) + "\n" for number in numbers
    ).encode()


def movies_dat(numbers=range(100, 120)):
    return "".join(
        f"{number}::{movie_of(number)[0]}::{'|'.join(movie_of(number)[1])}\n"
        for number in numbers
    ).encode("latin-1")


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_folder(folder, ratings, *, folds=False, compress=False, sides=True):
    files = {"ratings.dat": as_dat(ratings).encode()}
    if folds:
        files = {f"test_{n}.dat": as_csv(ratings[n::3]).encode() for n in range(3)}
    if sides:
        files |= {"users.dat": users_dat(), "movies.dat": movies_dat()}
    for name, content in files.items():
        if compress:
            write(folder / f"{name}.gz", gzip.compress(content))
        else:
            write(folder / name, content)
    return folder


def expected(ratings, seed=0):
    """Make the whole stream without numpy arithmetic, from the rule it follows."""
    ratings = sorted(ratings)
    order = np.random.default_rng(seed).permutation(len(ratings))
    ids = []
    for user, movie, _ in (ratings[place] for place in order):
        gender, age, occupation, code = user_of(user)
        title, genres = movie_of(movie)
        crcs = [zlib.crc32(genre.encode()) for genre in genres]
        zip_prefix = int(code[:3]) if code else -1
        year = int(title[-5:-1]) if title != "Untitled" else -1
        example = [user, movie, int(gender == "M"), age, occupation, zip_prefix, year]
        ids.append(example + (crcs + [-1] * 3)[:3])
    return Batch(
        np.array([ratings[place][2] >= 4 for place in order], np.float32),
        np.ones((len(ratings), 1), np.float32),
        np.array(ids, np.int64),
    )


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
