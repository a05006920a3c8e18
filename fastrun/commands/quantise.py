"""Write a network in 8-bit integers, calibrated on pictures or arrays, as an ONNX file (QDQ)."""

from __future__ import annotations

import math
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from fastrun.graph.core.errors import InputError
from fastrun.options import count, new_file, pictures, preparation, shapes, shapes_of
from fastrun.tuner.records.units import duration, percent, plural


def options(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in network or an ONNX file")
    parser.add_argument(
        "--calibrate",
        type=Path,
        required=True,
        metavar="DATA",
        help="inputs like those in use: a folder of pictures or of .npy and .npz files, or one "
        ".npz file with an array for each input, whose first axis counts samples",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=new_file,
        required=True,
        metavar="FILE",
        help="the file to write (.onnx)",
    )
    parser.add_argument(
        "--bits",
        choices=("8", "7", "6", "5", "4"),
        default="8",
        help="bits of the weights (default 8). 7 for engines and processors on which sums of "
        "products of 8 bits saturate: x86 without VNNI; fastrun itself is exact. With fewer than "
        "7 the first and the last layers keep 8",
    )
    parser.add_argument(
        "--range",
        choices=("minmax", "percentile", "mse", "outputs"),
        default="outputs",
        help="the range of a tensor: minmax: all values seen; percentile: all but 0.001 %% at each "
        "end; mse: the one of the least squared error; outputs: from there the one that changes "
        "the network's outputs least (default)",
    )
    parser.add_argument(
        "--rounding",
        choices=("gptq", "nearest"),
        default="gptq",
        help="of weights: gptq: errors make up for each other on the calibration data (default). "
        "nearest: faster",
    )
    parser.add_argument(
        "--keep",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="NODE,...",
        help="nodes that stay in float32, by their names in `fastrun plan`",
    )
    parser.add_argument(
        "--min-sqnr",
        type=_decibels,
        default=-math.inf,
        metavar="DB",
        help="let layers stay in float32 until the signal to quantisation noise ratio of each "
        "output is at least so many decibels on the calibration data, those first that lose most "
        "for the time that integers save",
    )
    parser.add_argument(
        "--samples",
        type=count,
        default=128,
        metavar="N",
        help="number of samples to use at most, spread evenly over the data (default 128)",
    )
    shapes(parser)
    pictures(parser)


def run(arguments: Namespace) -> int:
    """Quantise, write the file, print what became of the network."""
    from fastrun.tuner.networks.quantise import quantise
    from fastrun.tuner.terminal.phases import Phases
    from fastrun.tuner.terminal.prose import say

    _check_output(arguments.output, arguments.model)
    start = time.perf_counter()
    with Phases() as progress:
        done = quantise(
            arguments.model,
            arguments.calibrate,
            bits=int(arguments.bits),
            ranges=arguments.range,
            rounding=arguments.rounding,
            keep=arguments.keep,
            min_sqnr=arguments.min_sqnr,
            shapes=shapes_of(arguments),
            pictures=preparation(arguments),
            samples=arguments.samples,
            progress=progress,
        )
    done.save(arguments.output)
    everything = len(done.layers) + len(done.kept)
    say(
        f"{arguments.model}: {len(done.layers)} of {plural(everything, 'layer')} in 8 bits, "
        f"{_weights(int(arguments.bits))}calibrated with {plural(done.batches, 'input')} in "
        f"{duration(time.perf_counter() - start)}"
    )
    if done.kept:
        say(f"in float32: {', '.join(done.kept)}")
    for name, difference in done.differences.items():
        same = ""
        if difference.agreement is not None:
            same = f", the same largest value in {percent(difference.agreement)} of cases"
        where = "" if difference.of == name else " before its softmax"
        say(f"{name}: SQNR {difference.sqnr:.1f} dB{where}{same} (on the calibration data)")
    say(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")
    return 0


def _decibels(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ArgumentTypeError(f"{text!r} is no number of decibels")
    return found


def _weights(bits: int) -> str:
    """What is to be said of weights of fewer than 8 bits."""
    if bits == 8:
        return ""
    ends = ", the first and the last layers' of 8" if bits < 7 else ""
    return f"their weights of {bits}{ends}, "


def _check_output(path: Path, model: str) -> None:
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the name of the file to write must end in .onnx")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {str(path.parent)!r}")
    if path.exists() and Path(model).exists() and path.samefile(model):
        raise InputError(f"{path}: this is the model itself: write to another file")
