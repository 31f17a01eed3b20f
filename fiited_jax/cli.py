"""The command `fiited`. Needs the `[train]` extra."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from .training import TrainOptions

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: of the command line; `None` takes the program's own.

    Returns:
      The exit status: 0, 1 if the outputs cannot be written, 2 for input that cannot
      be used, 130 if interrupted.
    """
    try:
        options = _parse(arguments)
    except ModuleNotFoundError as error:
        return _refuse(f"{error}; pip install 'fiited_jax[train]' brings it")
    except ValueError as error:
        return _refuse(error)
    try:
        return _train(options)
    except KeyboardInterrupt:
        print("fiited: interrupted, nothing was written", file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> "TrainOptions":
    """Read the command line; exits with 2 by itself if it cannot be parsed."""
    import tyro

    from .training import TrainOptions

    app = tyro.extras.SubcommandApp()

    @app.command(name="train")
    def train(
        options: Annotated[TrainOptions, tyro.conf.arg(name="")],
    ) -> TrainOptions:
        """Train a DLRM and prune its embeddings while it trains."""
        return options

    return app.cli(
        prog="fiited", description="Embeddings pruned in training.", args=arguments
    )


def _train(options: "TrainOptions") -> int:
    """Train, then print and write what came of it."""
    from rich.console import Console

    from . import training
    from .data import DataError

    console = Console()
    try:
        if options.out is not None:  # find out before the work, not after it
            options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _refuse(f"out cannot be made a folder: {error}")
    try:
        stream = training.open_stream(options)
        trainer = training.Trainer(options, stream)
    except ValueError as error:
        return _refuse(error)
    try:
        result = trainer.train(training.RichReporter(console))
    except DataError as error:
        return _refuse(error)
    summary = training.summarize(result, stream.bayes())
    training.print_summary(console, options, summary)
    if options.out is not None:
        try:
            training.write_outputs(options.out, options, result, summary)
        except OSError as error:
            print(f"fiited: error: out cannot be written: {error}", file=sys.stderr)
            return 1
        console.print(f"written to {options.out}")
    return 0


def _refuse(message: object) -> int:
    print(f"fiited: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
