"""Files in the MovieLens format for tests, and what they hold."""

import gzip
import zlib

import numpy as np

from fiited_jax.data import Batch

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
