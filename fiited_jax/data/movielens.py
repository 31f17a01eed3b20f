"""MovieLens-1M as a click stream: a rating of at least 4 stars is a click."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from .file_stream import FileStream
from .lines import Column, LineFormat, unreadable
from .stream import PADDING, Batch, DataError, check_count

__all__ = ["MovieLensStream"]

_MIN_LIKED = "4"
_NUM_GENRES = 3
_ZIP_PREFIX = 3  # digits: the sorting centre
_BLOCK = 1 << 14
_BLOCK_BYTES = 1 << 22

_ID = Column(re.compile(rb"0*[0-9]{1,18}"), "an integer of 1 to 18 digits", pl.Int64)
_TEXT = Column(re.compile(rb".*"), "anything")
_STARS = Column(re.compile(rb"[1-5]"), "1, 2, 3, 4 or 5")
_RATED = {"user": _ID, "movie": _ID, "rating": _STARS}
_SUSPICIOUS = b"+- \r"
_COLONS = (b"::", "separated by ::")
_RATINGS = "the format of MovieLens ratings"
_CSV = LineFormat(_RATINGS, b",", "separated by commas", _RATED, _SUSPICIOUS)
_DAT = LineFormat(_RATINGS, *_COLONS, {**_RATED, "timestamp": _ID}, _SUSPICIOUS)
_USERS = LineFormat(
    "the format of MovieLens users",
    *_COLONS,
    {
        "user": _ID,
        "gender": Column(re.compile(rb"[FM]"), "F or M"),
        "age": _ID,
        "occupation": _ID,
        "zip code": Column(
            re.compile(rb"([0-9]{%d}.*)?" % _ZIP_PREFIX),
            f"empty or begin with {_ZIP_PREFIX} digits",
        ),
    },
)
_MOVIES = LineFormat(
    "the format of MovieLens movies",
    *_COLONS,
    {"movie": _ID, "title": _TEXT, "genres": _TEXT},
)
_YEAR = re.compile(rb"\(([0-9]{4})\) *$")
_MAX_ID = 10**18 - 1


class MovieLensStream(FileStream):
    """The ratings of MovieLens-1M, or of files like it, in a fixed random order.

    `path` is a file of ratings or a folder. The folder holds `ratings.dat`, lines
    `user::movie::rating::timestamp`, or else disjoint folds `test_*.dat` or
    `test_*.csv`, lines `user,movie,rating`, of which all are read. A file tells by its
    first line which of the two it is. Beside the ratings may lie `users.dat`, lines
    `user::gender::age::occupation::zip code`, and `movies.dat`, lines
    `movie::title (year)::genre|genre`. Any file may be gzip compressed, its name then
    ending in `.gz`. Everything is read into memory when the stream is opened.

    The label is 1 for 4 or 5 stars. The order is a random permutation drawn by `seed`
    of the ratings sorted by user and movie: it depends neither on their order in the
    files nor on timestamps, which folds do not have, and is bit-reproducible on one
    build of numpy. The test split is the last `round(num_rows * test_fraction)` of it.

    The tables are user and movie; with `users.dat` gender (0 is F, 1 is M), age,
    occupation and the first 3 digits of the zip code; with `movies.dat` the year of the
    movie and its first 3 genres, a table each, as the CRC-32 of their names. Integers
    are ids as they are; what a user or movie does not have is padding (-1). There are
    no dense features; the single one here is a constant 1, from which a model can
    learn a bias.

    The first `vocabulary()` is kept in `cache_dir` and found again while all files
    stay the same. A cache that cannot be read or written is ignored.

    Args:
      path: The folder or file.
      test_fraction: Share of ratings in the test split, above 0 and below 1.
      seed: Seed of the permutation, not negative.
      cache_dir: Folder of the cache; by default the environment variable
        `FIITED_CACHE_DIR` or else `~/.cache/fiited_jax`.

    Raises:
      DataError: A file is missing, cannot be read or is not in the format, a user rates
        a movie twice, a user or movie has no row in its file, or there are too few
        ratings for both splits.
      ValueError: `test_fraction` or `seed` is out of range.
    """

    name = "movielens"
    num_dense = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        test_fraction: float = 0.1,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ):
        check_count("seed", seed, low=0)
        try:
            ratings, users, movies = _find_files(Path(path))
        except OSError as error:  # a name too long, a folder that may not be entered
            raise unreadable(Path(path), error) from error
        super().__init__(
            path,
            test_fraction,
            cache_dir,
            files=[*ratings, *(file for file in (users, movies) if file)],
            options=(seed, np.__version__),
        )
        self.seed = seed
        pairs, liked = _read_ratings(ratings, self.path)
        self._cut(len(liked))
        order = np.random.default_rng(seed).permutation(len(liked))
        self._labels = liked[order]
        self._users, self._user_rows = _side(
            "user", pairs[order, 0], users, _read_users
        )
        self._movies, self._movie_rows = _side(
            "movie", pairs[order, 1], movies, _read_movies
        )
        self.num_tables = self._users.shape[1] + self._movies.shape[1]

    def _examples(self, start: int, stop: int) -> Iterator[Batch]:
        for first in range(start, stop, _BLOCK):
            rows = slice(first, min(first + _BLOCK, stop))
            users = self._users[self._user_rows[rows]]
            movies = self._movies[self._movie_rows[rows]]
            yield Batch(
                self._labels[rows].astype(np.float32),
                np.ones((len(users), 1), np.float32),
                # User and movie come first, whatever files there are.
                np.hstack([users[:, :1], movies[:, :1], users[:, 1:], movies[:, 1:]]),
            )


def _find_files(path: Path) -> tuple[list[Path], Path | None, Path | None]:
    """Return the files of ratings, and those of users and movies where there are."""
    folder = path if path.is_dir() else path.parent
    ratings = [path]
    if path.is_dir():
        single = _find(folder, "ratings.dat")
        ratings = [single] if single else sorted(_folds(folder))
        if not ratings:
            raise DataError(
                f"{path}: has neither ratings.dat nor test_*.dat nor test_*.csv in it, "
                "plain or with .gz; a folder or file of MovieLens ratings is needed"
            )
    return ratings, _find(folder, "users.dat"), _find(folder, "movies.dat")


def _find(folder: Path, name: str) -> Path | None:
    files = (folder / name, folder / f"{name}.gz")
    return next((file for file in files if file.is_file()), None)


def _folds(folder: Path) -> Iterator[Path]:
    for ending in ("dat", "csv"):
        yield from folder.glob(f"test_*.{ending}")
        yield from folder.glob(f"test_*.{ending}.gz")


def _read(path: Path, line_format: LineFormat) -> bytes:
    lines = b"".join(line_format.blocks(path, _BLOCK_BYTES))
    if not lines:
        raise DataError(f"{path}: is empty, lines of MovieLens are needed")
    return lines


def _read_ratings(files: list[Path], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (user, movie) int64[N, 2] in ascending order, and bool[N] if it is liked.

    Raises:
      DataError: A file is not usable or a pair comes twice.
    """
    parts = [_parse_ratings(_read(file, _CSV), file) for file in files]
    pairs, liked = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, liked = pairs[order], liked[order]
    twice = np.all(pairs[1:] == pairs[:-1], axis=1)
    if np.any(twice):
        user, movie = pairs[np.argmax(twice)]
        raise DataError(
            f"{path}: user {user} rates movie {movie} twice; every pair may come once, "
            "and folds must be disjoint"
        )
    return pairs, liked


def _parse_ratings(lines: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Parse a whole file into (user, movie) int64[N, 2] and liked bool[N]."""
    line_format = _DAT if b"::" in lines[: lines.index(b"\n")] else _CSV
    usable = [
        pl.col("rating").is_in(list("12345")).fill_null(False).all(),
        pl.col(pl.Int64).is_between(0, _MAX_ID).fill_null(False).all(),
    ]
    frame = line_format.parse(lines, path, 1, usable)
    return (
        frame.select("user", "movie").to_numpy(),
        frame.select(pl.col("rating") >= _MIN_LIKED).to_numpy()[:, 0],
    )


def _side(
    name: str,
    ids: np.ndarray,
    path: Path | None,
    read: Callable[[Path], dict[int, tuple[int, ...]]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids int64[K, tables] of every user or movie, and whose are whose.

    Args:
      name: `"user"` or `"movie"`, for messages.
      ids: int64[N], of the ratings.
      path: The file that describes them, if there is one.
      read: Reads it.

    Returns:
      The ids, those of the user or movie itself first, and the rows int32[N] in them.

    Raises:
      DataError: One of them has no line in the file.
    """
    known, rows = np.unique(ids, return_inverse=True)
    table = known[:, None]
    if path is not None:
        described = read(path)
        for number in known.tolist():
            if number not in described:
                raise DataError(
                    f"{path}: has no line for {name} {number}, must have one for "
                    f"every {name} with a rating"
                )
        values = [described[number] for number in known.tolist()]
        table = np.hstack([table, np.array(values, np.int64)])
    return table, rows.astype(np.int32)


def _read_users(path: Path) -> dict[int, tuple[int, ...]]:
    """Return by user: gender, age, occupation, zip prefix."""
    return {
        user: (
            int(gender == b"M"),
            int(age),
            int(occupation),
            int(code[:_ZIP_PREFIX]) if code else PADDING,
        )
        for user, (gender, age, occupation, code) in _described(path, _USERS).items()
    }


def _read_movies(path: Path) -> dict[int, tuple[int, ...]]:
    """Return by movie: year, first genres."""
    movies = {}
    for movie, (title, text) in _described(path, _MOVIES).items():
        year = _YEAR.search(title)
        genres = [zlib.crc32(genre) for genre in text.split(b"|") if genre]
        genres = (genres + [PADDING] * _NUM_GENRES)[:_NUM_GENRES]
        movies[movie] = (int(year[1]) if year else PADDING, *genres)
    return movies


def _described(path: Path, line_format: LineFormat) -> dict[int, list[bytes]]:
    """Return the fields of every line by the id in the first of them."""
    lines = _read(path, line_format)
    line_format.check(lines, path, 1)
    described = {}
    for number, line in enumerate(lines.split(b"\n")[:-1], 1):
        first, *fields = line.split(line_format.separator)
        if int(first) in described:
            raise DataError(
                f"{path}: line {number} is a second one for {int(first)}, "
                "must be the only one"
            )
        described[int(first)] = fields
    return described
