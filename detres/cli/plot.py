"""Pictures of runs: `plot curves RUN... --out DIR`, of classifiers the paper's figures 1, 4 and 6,
of detectors losses, rate and AP; and figure 7, `plot responses WEIGHTS... --out DIR`.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and draw; returns the exit status."""
    parser = CommandParser(description="draw curves of runs, and the responses of layers")
    parser.add_argument(
        "kind",
        choices=("curves", "responses"),
        help="over the steps: of runs of train-cls their errors (the paper's figures 1, 4, 6), of "
        "others losses, learning rate and AP; strength of layers (figure 7)",
    )
    parser.add_argument(
        "paths",
        metavar="RUN_OR_WEIGHTS",
        type=expanded,
        nargs="+",
        help="curves: run folders; responses: weights.safetensors of runs",
    )
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        required=True,
        help="where KIND.png and KIND.csv go; what has these names there is replaced",
    )
    parser.add_argument(
        "--data",
        type=expanded,
        metavar="DIR",
        help="responses: data folder (default: the run's own)",
    )
    parser.add_argument(
        "--max-error",
        type=float,
        metavar="PERCENT",
        help="curves of train-cls: where the picture ends above (the paper's figure 6: 20; "
        "default: nowhere)",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    if arguments.kind == "curves" and arguments.data:
        parser.error("--data goes with responses; curves are read from the run folders")
    if arguments.kind == "responses" and arguments.max_error is not None:
        parser.error("--max-error goes with curves")
    if arguments.max_error is not None and not 0 < arguments.max_error <= 100:
        parser.error(f"--max-error is a percentage above 0, got {arguments.max_error:g}")
    return carry_out("plot:draw", parser, arguments, ("paths", "--data"))
