"""The command `fiited`. Needs the `[train]` extra."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from .comparison import CompareOptions
    from .training import TrainOptions

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: of the command line; `None` takes the program's own.

    Returns:
      The exit status: 0, 1 if the outputs cannot be written, 2 for input that cannot
      be used and for a full store with `on_full="error"`, 130 if interrupted.
    """
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        try:
            _check_not_empty(arguments)
            command = _parse(arguments)
        except ModuleNotFoundError as error:
            return _refuse(f"{error}; pip install 'fiited_jax[train]' brings it")
        except ValueError as error:
            return _refuse(error)
        return command()
    except KeyboardInterrupt:
        print("fiited: interrupted", file=sys.stderr)
        return 130


def _check_not_empty(arguments: Sequence[str]) -> None:
    """Refuse `--out ""`: as a path it would be the current folder.

    Raises:
      ValueError: if an argument is empty, or what follows the = of an option.
    """
    before = "an argument"
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_option = name.startswith("--")
        if not argument or (is_option and equals and not value):
            raise ValueError(f"{name or before} must not be empty, got ''")
        before = name if is_option else "an argument"


def _parse(arguments: Sequence[str]) -> Callable[[], int]:
    """Read the command line; exits with 2 by itself if it cannot be parsed.

    Returns:
      What runs the command and returns its exit status.
    """
    import tyro

    from .comparison import CompareOptions
    from .training import TrainOptions

    app = tyro.extras.SubcommandApp()

    @app.command(name="train")
    def train(
        options: Annotated[TrainOptions, tyro.conf.arg(name="")],
    ) -> Callable[[], int]:
        """Train a DLRM and prune its embeddings while it trains.

        fiited train --data criteo --path train.txt --compression 10 --out runs/criteo
        """
        return lambda: _train(options)

    @app.command(name="compare")
    def compare(
        options: Annotated[CompareOptions, tyro.conf.arg(name="")],
    ) -> Callable[[], int]:
        """Compare embedding methods at equal all-in bytes.

        fiited compare --data criteo --path train.txt --sizes 2,10,50 --out runs/compare
        """
        return lambda: _compare(options)

    return app.cli(
        prog="fiited", description="Embeddings pruned in training.", args=arguments
    )


def _train(options: "TrainOptions") -> int:
    """Train, then write and print what came of it."""
    import jax
    from rich.console import Console

    from . import training
    from .data import DataError

    console = Console()
    if options.out is not None and (unusable := _check_out(options.out)):
        return _refuse(unusable)
    try:
        stream = training.open_stream(options)
        trainer = training.Trainer(options, stream)
    except ValueError as error:
        return _refuse(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        return _refuse(_too_large(error))
    try:
        result = trainer.train(training.make_reporter(console))
    except (DataError, training.StoreFullError) as error:
        return _refuse(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        return _refuse(_too_large(error))
    summary = training.summarize(result, stream.bayes())
    if options.out is not None:  # before printing, which may fail
        try:
            training.write_outputs(options.out, options, result, summary)
        except OSError as error:
            return _fail_to_write(error)
    training.print_summary(console, options, summary)
    if options.out is not None:
        console.print(f"written to {options.out}")
    return 0


def _compare(options: "CompareOptions") -> int:
    """Run all cells that are missing, then write the report."""
    import jax
    from rich.console import Console

    from . import comparison
    from .data import DataError

    console = Console()
    if unusable := _check_out(options.out):
        return _refuse(unusable)
    progress = comparison.CompareProgress(console)
    try:
        stream = comparison.open_data(options)
        cells = comparison.Comparison(options, stream, progress)
    except (OSError, ValueError) as error:
        return _refuse(error)
    try:
        outcomes = cells.run()
        comparison.write_report(options, stream, outcomes)
    except DataError as error:
        return _refuse(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        return _refuse(_too_large(error))
    except OSError as error:
        return _fail_to_write(error)
    console.print("\n".join(comparison.verdict(outcomes)), markup=False, soft_wrap=True)
    console.print(f"written to {options.out}", markup=False, soft_wrap=True)
    return 0


def _check_out(out: Path) -> str | None:
    """Say what is wrong with the folder, before the work and not after it."""
    from .training import check_writable

    try:
        check_writable(out)
    except OSError as error:
        return f"out must be a folder that can be written: {error}"
    return None


def _fail_to_write(error: OSError) -> int:
    print(f"fiited: error: out cannot be written: {error}", file=sys.stderr)
    return 1


def _too_large(error: Exception) -> str:
    """Say what to do about memory; anything else that went wrong is a bug."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in text:
        raise error
    return (
        "memory does not suffice; lower budget, embedding_dim or batch_size, or raise "
        f"compression ({text})"
    )


def _refuse(message: object) -> int:
    print(f"fiited: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
