"""What every recipe prints: lines of rank 0, and a last one for whoever started it."""

import json

import trainkit

__all__ = ["finish", "say"]


def say(ctx: trainkit.Context, text: str) -> None:
    """Print a line on rank 0."""
    if ctx.rank == 0:
        print(text, flush=True)


def finish(ctx: trainkit.Context, *, step: int, steps_run: int, **results: float) -> None:
    """Print the last line of a recipe: one JSON object, for whoever started it."""
    done = {"event": "done", "step": step, "steps_run": steps_run, **results}
    say(ctx, json.dumps(done))
