"""Exported libraries: linked without a linker, run by ctypes, by C and under emulation."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import runpy
import shutil
import struct
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import fastrun
from fastrun.graph.aot.check import check
from fastrun.graph.aot.export import ExportError, export
from fastrun.graph.aot.interface import SERVES
from fastrun.graph.aot.layout import code
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference import interpreter
from fastrun.kernels.core import processors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16
from fastrun.kernels.native import elf, shared
from fastrun.tuner.device.identity import identify
from fastrun.tuner.device.reach import DeviceError
from tests.support.emulated import RISCV_WITH_VECTORS, Library, emulated
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor is no x86-64")
EMULATOR, CROSS = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
ARM = pytest.mark.skipif(
    not (EMULATOR and CROSS), reason="qemu-aarch64 or aarch64-linux-gnu-gcc is not installed"
)


def network() -> Any:
    """Every kind of step: a first layer, Winograd, depthwise, pools, a dense layer, two threads."""
    pads = [1, 1, 1, 1]
    nodes = [
        node("Conv", "x w0 b0", "a", strides=[2, 2], pads=pads),
        node("Relu", "a", "b"),
        node("Conv", "b w1", "c", pads=pads),
        node("Add", "c b", "d"),
        node("Relu", "d", "e"),
        node("Conv", "e w2", "f", pads=pads, group=16),
        node("MaxPool", "f", "g", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "g", "h"),
        node("Flatten", "h", "i"),
        node("Gemm", "i w3", "y", transB=1),
    ]
    constants = {
        "w0": normal(16, 3, 3, 3),
        "b0": normal(16),
        "w1": normal(16, 16, 3, 3) * np.float32(0.1),
        "w2": normal(16, 1, 3, 3),
        "w3": normal(10, 16),
    }
    return model(nodes, constants, shape=(1, 3, 19, 17))


@pytest.fixture(scope="module")
def graph() -> Any:
    return optimise(load_network(network()))


@pytest.fixture(scope="module")
def truth(graph: Any) -> np.ndarray:
    return interpreter.run(graph, {"x": normal(1, 3, 19, 17, seed=3)})["y"]


def loaded(folder: Path, name: str = "net") -> Any:
    return runpy.run_path(str(folder / f"{name}.py"))["Net"]


@X86
@pytest.mark.parametrize("threads", [1, 2])
def test_a_library_runs_like_float64(
    threads: int, graph: Any, truth: np.ndarray, tmp_path: Path
) -> None:
    done = export(graph, tmp_path, ["native", "x86-64-v3", "x86-64-v2"], name="net")
    assert set(done.imports) <= set(SERVES)
    ran = 0
    for number in (1, 2, 3):
        if number == 2 and "+avx2" not in Cpu.host().features:
            continue
        net = loaded(tmp_path)(threads, number)
        x = normal(1, 3, 19, 17, seed=3)
        for _ in range(3):
            assert relative_error(net.run(x)["y"], truth) < 1e-4
        net.close()
        ran += 1
    assert ran >= 2


@X86
def test_the_same_export_gives_the_same_bytes(graph: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        export(graph, tmp_path / folder, ["x86-64-v3"], name="net")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@X86
def test_a_c_program_links_both_libraries(graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    export(graph, tmp_path, ["native"], name="net", embed=False)
    x = normal(1, 3, 19, 17, seed=3)
    x.tofile(tmp_path / "x.bin")
    for goal in ("example", "static"):
        subprocess.run(["make", "-s", "-B", goal, "CC=cc -Werror -Wall"], cwd=tmp_path, check=True)
        ran = subprocess.run(
            ["./example", "2", "x.bin"], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        total = float(ran.stdout.split("sum ")[1].split(",")[0])
        assert abs(total - truth.sum()) < 1e-4 * np.abs(truth).sum()


@X86
def test_the_example_is_clean_under_sanitizers(graph: Any, tmp_path: Path) -> None:
    """What the program reads, writes, frees and leaks is checked; code of kernels is not."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    export(graph, tmp_path, ["native"], name="net")
    checks = "-fsanitize=address,undefined -fno-sanitize-recover=all"
    built = subprocess.run(["make", "-s", "-B", "static", f"CC={compiler} {checks}"], cwd=tmp_path)
    if built.returncode:
        pytest.skip("gcc has no sanitizers")
    ran = subprocess.run(["./example", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@X86
def test_build_systems_find_the_library(graph: Any, tmp_path: Path) -> None:
    export(graph, tmp_path / "out", ["x86-64-v2"], name="net")
    if shutil.which("pkg-config"):
        asked = ["pkg-config", "--cflags", "--libs", "net"]
        place = {**os.environ, "PKG_CONFIG_PATH": str(tmp_path / "out")}
        said = subprocess.run(asked, env=place, check=True, capture_output=True, text=True).stdout
        assert f"-L{tmp_path}/out -lnet" in said
    if shutil.which("cmake"):
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.10)\nproject(app C)\n"
            "find_package(net CONFIG REQUIRED PATHS out NO_DEFAULT_PATH)\n"
            "add_executable(app out/example.c)\ntarget_link_libraries(app PRIVATE net::net m)\n"
        )
        for words in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"]):
            subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        subprocess.run(["../build/app"], cwd=tmp_path / "out", check=True, capture_output=True)


@X86
def test_weights_may_lie_in_the_library(graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    export(graph, tmp_path, ["x86-64-v2"], name="net", embed=True)
    assert not (tmp_path / "net.weights").exists()
    net = loaded(tmp_path)()
    assert relative_error(net.run(normal(1, 3, 19, 17, seed=3))["y"], truth) < 1e-4
    net.close()


@X86
def test_errors_are_codes(graph: Any, tmp_path: Path) -> None:
    export(graph, tmp_path, ["x86-64-v2"], name="net")
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    options = loaded(tmp_path).__init__.__globals__["Options"]
    net = ctypes.c_void_p()

    def opened(**changed: Any) -> int:
        given = {"size": ctypes.sizeof(options), "threads": 1}
        given["weights"] = str(tmp_path / "net.weights").encode()
        code_ = library.net_open(ctypes.byref(net), ctypes.byref(options(**{**given, **changed})))
        assert (code_ == 0) == bool(net)
        return int(code_)

    assert opened(size=8) == code("OPTIONS")
    assert opened(threads=-1) == code("OPTIONS")
    assert opened(threads=65) == code("OPTIONS")
    assert opened(isa=2) == opened(isa=-1) == code("OPTIONS")
    assert opened(weights=b"/nowhere") == code("WEIGHTS_MISSING")
    other = tmp_path / "other.weights"
    data = bytearray((tmp_path / "net.weights").read_bytes())
    other.write_bytes(data[:-1])
    assert opened(weights=str(other).encode()) == code("WEIGHTS_OTHER")
    data[40] ^= 1
    other.write_bytes(data)
    assert opened(weights=str(other).encode()) == code("WEIGHTS_OTHER")
    assert opened(memory=4096, memory_size=64) == code("MEMORY")
    assert opened() == 0
    copy = ctypes.c_void_p()
    assert library.net_clone(ctypes.byref(copy), net) == 0
    inputs = (ctypes.c_void_p * 1)(None)
    assert library.net_run(copy, inputs, inputs) == code("OPTIONS")
    library.net_close(net)
    x, y = normal(1, 3, 19, 17, seed=3), np.zeros((1, 10), np.float32)
    given = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
    assert library.net_run(copy, *given) == 0, "a clone outlives the context that it is of"
    assert np.isfinite(y).all()
    library.net_close(copy)
    library.net_close(None)
    assert "net.weights" not in Path("/proc/self/maps").read_text()


@X86
def test_the_callers_memory_is_used(graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    export(graph, tmp_path, ["x86-64-v2"], name="net")
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    library.net_memory.restype = ctypes.c_size_t
    size = library.net_memory(2, 0)
    assert size > library.net_memory(1, 0) > 0 == library.net_memory(0, 0)
    room = np.full(size + 8192, 7, np.uint8)
    start = -(-(room.ctypes.data + 1) // 4096) * 4096
    options = loaded(tmp_path).__init__.__globals__["Options"]
    given = options(
        ctypes.sizeof(options), str(tmp_path / "net.weights").encode(), 2, 0, start, size
    )
    net = ctypes.c_void_p()
    assert library.net_open(ctypes.byref(net), ctypes.byref(given)) == 0
    assert net.value == start
    x, y = normal(1, 3, 19, 17, seed=3), np.zeros((1, 10), np.float32)
    pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
    assert library.net_run(net, *pointers) == 0
    assert relative_error(y, truth) < 1e-4
    library.net_close(net)
    before, after = start - room.ctypes.data, room.size - (start - room.ctypes.data) - size
    assert (room[:before] == 7).all()
    assert (room[-after:] == 7).all()


@X86
@pytest.mark.parametrize("isa", [1, 2])
def test_arrays_may_have_strides(isa: int, graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    """A part of a larger picture with channels last is read, and every other number is written."""
    export(graph, tmp_path, ["native", "x86-64-v2"], name="net")
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    options = loaded(tmp_path).__init__.__globals__["Options"]
    picture = np.full((25, 40, 3), np.nan, np.float32)
    picture[2:21, 5:22] = normal(1, 3, 19, 17, seed=3)[0].transpose(1, 2, 0)
    steps = (ctypes.c_int64 * 4)(0, 1, 3 * 40, 3), (ctypes.c_int64 * 2)(0, -2)
    tables = [(ctypes.c_void_p * 1)(ctypes.addressof(x)) for x in steps]
    given = options(
        ctypes.sizeof(options), str(tmp_path / "net.weights").encode(), 2, isa, None, 0,
        *map(ctypes.addressof, tables),
    )  # fmt: skip
    net, copy = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.net_open(ctypes.byref(net), ctypes.byref(given)) == 0
    steps[0][1] = 99  # the strides have been copied
    assert library.net_clone(ctypes.byref(copy), net) == 0
    library.net_close(net)
    y = np.full(20, 5, np.float32)
    places = picture[2:, 5:].ctypes.data, y[18:].ctypes.data
    assert library.net_run(copy, *((ctypes.c_void_p * 1)(at) for at in places)) == 0
    assert relative_error(y[18::-2][None], truth) < 1e-4
    assert (y[1::2] == 5).all()
    library.net_close(copy)


@X86
def test_weights_may_be_copied(graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    """Then the file is not mapped any more, whoever of the clones closes last."""
    for embed in (False, True):
        folder = tmp_path / str(embed)
        export(graph, folder, ["x86-64-v2"], name="net", embed=embed)
        net = loaded(folder)(2, copy_weights=True)
        assert "net.weights" not in Path("/proc/self/maps").read_text()
        x = normal(1, 3, 19, 17, seed=3)
        assert relative_error(net.run(x)["y"], truth) < 1e-4
        copy = ctypes.c_void_p()
        assert net._library.net_clone(ctypes.byref(copy), net._net) == 0
        net.close()
        y = np.zeros((1, 10), np.float32)
        given = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
        assert net._library.net_run(copy, *given) == 0
        assert relative_error(y, truth) < 1e-4
        net._library.net_close(copy)


@X86
@pytest.mark.parametrize("isa", [1, 2])
def test_inputs_are_read_where_they_are(
    isa: int, graph: Any, truth: np.ndarray, tmp_path: Path
) -> None:
    """A picture at a multiple of 64 bytes is not copied, one that lies elsewhere is."""
    export(graph, tmp_path, ["native", "x86-64-v2"], name="net")
    said = (tmp_path / "net.h").read_text()
    (strides,) = re.findall(r"NET_INPUT0_STRIDES {(.*)}", said)
    origin, room = (
        int(re.findall(f"NET_INPUT0_{x} ([0-9]+)", said)[0]) for x in ("ORIGIN", "ROOM")
    )
    steps = (ctypes.c_int64 * 4)(*map(int, strides.split(",")))
    tables = (ctypes.c_void_p * 1)(ctypes.addressof(steps))
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    options = loaded(tmp_path).__init__.__globals__["Options"]
    given = options(ctypes.sizeof(options), str(tmp_path / "net.weights").encode(), 2, isa)
    given.input_strides, given.in_place = ctypes.addressof(tables), 1
    net = ctypes.c_void_p()
    assert library.net_open(ctypes.byref(net), ctypes.byref(given)) == 0
    memory = np.zeros(room + 192, np.uint8)
    x, y = normal(1, 3, 19, 17, seed=3), np.zeros((1, 10), np.float32)
    aligned = -memory.ctypes.data % 64
    for away in (0, 4, 0):
        memory[:] = 0
        at = aligned + away + origin
        picture = np.ndarray(x.shape, np.float32, memory.data, at, [4 * step for step in steps])
        memory[aligned + away : aligned + away + room] = np.full(1, 1e9, np.float32).view(np.uint8)[
            np.arange(room) % 4
        ]
        picture[...] = x
        pointers = (ctypes.c_void_p * 1)(memory.ctypes.data + at), (
            ctypes.c_void_p * 1)(y.ctypes.data)  # fmt: skip
        assert library.net_run(net, *pointers) == 0
        # Where zeros are promised there are large numbers, which only the network in place sees.
        assert (relative_error(y, truth) < 1e-4) == bool(away)
        memory[:] = 0
        picture[...] = x
        assert library.net_run(net, *pointers) == 0
        assert relative_error(y, truth) < 1e-4
    library.net_close(net)


@X86
@pytest.mark.parametrize("steps", [1, 3])
def test_outputs_are_written_where_they_are(
    steps: int, graph: Any, truth: np.ndarray, tmp_path: Path
) -> None:
    """The memory of a context has a copy of an output only if that could not be used in place."""
    export(graph, tmp_path, ["native"], name="net")
    assert "NET_OUTPUT0_STRIDES {10, 1}" in (tmp_path / "net.h").read_text()
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    library.net_memory.restype = ctypes.c_size_t
    size = library.net_memory(2, 0)
    room = np.zeros(size + 4096, np.uint8)
    start = -(-room.ctypes.data // 4096) * 4096
    options = loaded(tmp_path).__init__.__globals__["Options"]
    weights = str(tmp_path / "net.weights").encode()
    given = options(ctypes.sizeof(options), weights, 2, 0, start, size)
    given.in_place = 1
    strides = (ctypes.c_int64 * 2)(10 * steps, steps)
    tables = (ctypes.c_void_p * 1)(ctypes.addressof(strides))
    if steps > 1:
        given.output_strides = ctypes.addressof(tables)
    net = ctypes.c_void_p()
    assert library.net_open(ctypes.byref(net), ctypes.byref(given)) == 0
    x, memory = normal(1, 3, 19, 17, seed=3), np.zeros(256, np.float32)
    aligned = -memory.ctypes.data % 64 // 4
    for away in (0, 1, 0):
        memory[:] = 7
        y = memory[aligned + away :][: 10 * steps : steps]
        pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
        assert library.net_run(net, *pointers) == 0
        assert relative_error(y, truth.ravel()) < 1e-4
        others = np.delete(memory, aligned + away + steps * np.arange(10))
        assert others.tolist() == [7] * others.size
        inside = room.tobytes().find(y.copy().tobytes())
        assert (inside >= 0) == (steps > 1 or away > 0)
        room[max(inside, 0) :][:40] *= inside < 0
    library.net_close(net)


def converting(given: int, found: int) -> Any:
    """A model of one convolution that converts its input and output."""
    nodes = [
        node("Cast", "x", "f", to=TensorProto.FLOAT),
        node("Conv", "f w", "c"),
        node("Cast", "c", "y", to=found),
    ]
    return model(nodes, {"w": normal(6, 3, 1, 1)}, shape=(1, 3, 5, 7), dtype=given)


@X86
@pytest.mark.parametrize(
    ("given", "found"),
    [("uint8", "float16"), ("int64", "float64"), ("float16", "bfloat16"), ("int16", "float32")],
)
def test_callers_have_the_element_types_of_the_model(
    given: str, found: str, tmp_path: Path
) -> None:
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    kinds = [getattr(TensorProto, names.get(x, x.upper())) for x in (given, found)]
    graph = optimise(load_network(converting(*kinds)))
    done = export(graph, tmp_path, ["native", "x86-64-v2"], name="net")
    assert set(done.imports) <= set(SERVES)
    x = (20 * np.abs(normal(1, 3, 5, 7))).astype(given)
    truth = interpreter.run(graph, {"x": x})["y"]
    net = loaded(tmp_path)(1, 2)
    y = net.run(x)["y"]
    assert y.dtype == ("uint16" if found == "bfloat16" else found)
    y = BF16.decode(y) if found == "bfloat16" else y
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(found, 2.0**-22)
    assert np.abs(y - truth).max() <= step * np.abs(truth).max()
    with pytest.raises(ValueError, match=f"x is uint32: give it as {given}"):
        net.run(x.astype(np.uint32))
    net.close()
    errors = check(graph, done).values()
    assert all(error is None or error < step for error in errors)
    library = ctypes.CDLL(str(tmp_path / "libnet.so"))
    for function, kind, c in ((library.net_input, given, 3), (library.net_output, found, 6)):
        function.restype = ctypes.POINTER(Described)
        assert not function(1)
        assert not function(-1)
        told = function(0).contents
        assert told.type.decode() == kind
        assert told.name == (b"x" if c == 3 else b"y")
        assert told.shape[: told.rank] == [1, c, 5, 7]
        size = 2 if kind == "bfloat16" else np.dtype(kind).itemsize
        assert told.bytes == c * 35 * size


class Described(ctypes.Structure):
    """NAME_tensor of the header."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_size_t)),
        ("rank", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
    )


def summed(found: str, target: str, run: list[str], compiler: str, folder: Path) -> None:
    """Build and run the C example of a network from bytes to a type that C lacks."""
    kinds = TensorProto.UINT8, getattr(TensorProto, found.upper())
    graph = optimise(load_network(converting(*kinds)))
    export(graph, folder, [target], name="net")
    assert "1 x 3 x 5 x 7 uint8 */" in (folder / "net.h").read_text()
    built = ["make", "-s", "example", f"CC={compiler} -Werror -Wall -pedantic"]
    subprocess.run(built, cwd=folder, check=True)
    x = np.arange(105, dtype=np.uint8).reshape(1, 3, 5, 7)
    x.tofile(folder / "x.bin")
    ran = subprocess.run(
        [*run, "./example", "1", "x.bin"], cwd=folder, check=True, capture_output=True, text=True
    )
    y = interpreter.run(graph, {"x": x})["y"]
    values = [float(ran.stdout.split(word)[1].split(",")[0]) for word in ("sum ", "first ")]
    np.testing.assert_allclose(values, [y.sum(), y.flat[0]], rtol=1e-2)


@X86
@pytest.mark.parametrize("found", ["float16", "bfloat16"])
def test_the_c_example_knows_the_types(found: str, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    summed(found, "x86-64-v2", [], "cc", tmp_path)


@ARM
@pytest.mark.parametrize("found", ["float16", "bfloat16"])
def test_aarch64_converts_under_emulation(found: str, tmp_path: Path) -> None:
    assert EMULATOR
    assert CROSS
    emulator = [EMULATOR, "-L", "/usr/aarch64-linux-gnu"]
    summed(found, "aarch64", emulator, CROSS, tmp_path)


@X86
def test_a_type_that_c_lacks_is_refused(tmp_path: Path) -> None:
    graph = optimise(load_network(network()))
    other = replace(graph, outside={"x": np.dtype(np.complex64)})
    with pytest.raises(ExportError, match="elements of 'complex64', which a library cannot take"):
        export(other, tmp_path / "out", ["x86-64-v2"])
    assert not (tmp_path / "out").exists()


@ARM
@pytest.mark.parametrize("threads", ["1", "2"])
def test_aarch64_under_emulation(
    threads: str, graph: Any, truth: np.ndarray, tmp_path: Path
) -> None:
    assert EMULATOR
    assert CROSS
    export(graph, tmp_path, ["aarch64"], name="net")
    subprocess.run(["make", "-s", "example", f"CC={CROSS}"], cwd=tmp_path, check=True)
    normal(1, 3, 19, 17, seed=3).tofile(tmp_path / "x.bin")
    command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", "./example", threads, "x.bin"]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("aarch64\n")
    total = float(ran.stdout.split("sum ")[1].split(",")[0])
    assert abs(total - truth.sum()) < 1e-4 * np.abs(truth).sum()


@pytest.mark.skipif(not shutil.which("qemu-riscv64"), reason="qemu-riscv64 is not installed")
def test_riscv_under_emulation(graph: Any, truth: np.ndarray, tmp_path: Path) -> None:
    """The length of vector registers decides which code runs."""
    targets = ["riscv64gcv+zvl256b", "riscv64gcv"]
    done = export(graph, tmp_path, targets, name="net")
    assert set(done.imports) <= set(SERVES)
    x = normal(1, 3, 19, 17, seed=3)
    for vlen, number in ((512, 1), (128, 2)):
        with emulated(f"{RISCV_WITH_VECTORS},vlen={vlen}", tmp_path) as session:
            library = Library(session, tmp_path)
            assert library.opened(isa=3 - number) == -code("PROCESSOR") or number == 1
            net = library.opened(threads=2)
            assert library.text(library.call("isa", net)) == targets[number - 1]
            (y,) = library.run(net, [x], [truth.size])
            assert relative_error(y.reshape(truth.shape), truth) < 1e-4
    with emulated("qemu-riscv64", tmp_path) as session:
        assert Library(session, tmp_path).opened() == -code("PROCESSOR"), "no vectors at all"
        with pytest.raises(DeviceError, match="lacks RISC-V's vector extension"):
            identify(session)


@pytest.mark.parametrize(
    ("targets", "changes", "message"),
    [
        (["x86-64-v9"], {}, "unknown target 'x86-64-v9'"),
        (["x86-64-v3", "aarch64"], {}, "one architecture"),
        (["x86-64-v3"], {"name": "9 lives"}, "no name for C"),
        (
            ["x86-64-v3"],
            {"system": "beos"},
            "unknown system 'beos': use linux, android, macos, windows",
        ),
        (["x86-64-v3"], {"system": "macos", "embed": True}, "leave out --embed"),
        (["aarch64"], {"system": "windows"}, "windows has no aarch64"),
    ],
)
def test_what_cannot_be_exported(
    targets: list[str], changes: dict[str, Any], message: str, graph: Any, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(graph, tmp_path / "out", targets, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("system", "target", "magic"),
    [
        ("windows", "x86-64-v2", b"\x64\x86"),
        ("macos", "x86-64-v2", b"\xcf\xfa\xed\xfe"),
        ("macos", "aarch64", b"\xcf\xfa\xed\xfe"),
    ],
)
def test_other_systems_get_objects(
    system: str, target: str, magic: bytes, graph: Any, tmp_path: Path
) -> None:
    """All that the objects lack is in the C file beside them, or in every C library."""
    done = export(graph, tmp_path, [target], name="net", system=system)
    objects = [x for x in done.files if x.endswith((".o", ".obj"))]
    assert len(objects) == 2
    assert not any(x.endswith((".so", ".a")) for x in done.files)
    glue = (tmp_path / "net_os.c").read_text()
    given = set(re.findall(r"\b(net_os_\w+)\(", glue)) | {"memcpy", "memset", "bzero", "__bzero"}
    assert all((tmp_path / x).read_bytes().startswith(magic) for x in objects)
    if not shutil.which("llvm-readobj"):
        pytest.skip("llvm-readobj is not installed: only the form of the objects was checked")
    said = subprocess.run(
        ["llvm-readobj", "--symbols", *objects], cwd=tmp_path, check=True, capture_output=True
    ).stdout.decode()
    blocks = said.split("Symbol {")[1:]
    known, lacking = set[str](), set[str]()
    for block in blocks:
        name = block.split("Name: ")[1].split()[0].removeprefix("_" if system == "macos" else "")
        undefined = "IMAGE_SYM_UNDEFINED" in block or "Type: Undef (" in block
        (lacking if undefined else known).add(name)
    assert {"net_open", "net_run", "net_close"} <= known
    assert "net_os_mmap" in lacking
    assert lacking - known <= given


def test_androids_loader_takes_the_library(graph: Any, tmp_path: Path) -> None:
    """What bionic's linker checks: sections, segments, pages of 16 KB, a named C library."""
    export(graph, tmp_path, ["aarch64"], name="net", system="android")
    data = (tmp_path / "libnet.so").read_bytes()
    sections_at, count, names = (struct.unpack_from(f, data, at)[0]
                                 for f, at in (("<Q", 40), ("<H", 60), ("<H", 62)))  # fmt: skip
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + 64 * i) for i in range(count)]
    assert 0 < names < count
    segments = [struct.unpack_from("<IIQQQQQQ", data, 64 + 56 * i) for i in range(5)]
    for kind, flags, offset, address, _, _, _, align in segments:
        assert flags & 3 != 3, "written and executed"
        if kind == 1:
            assert align >= 1 << 14
            assert offset % align == address % align
    (dynamic,) = (s for s in segments if s[0] == 2)
    (described,) = (s for s in sections if s[1] == 6)
    assert (described[4], described[5]) == (dynamic[2], dynamic[5])
    assert sections[described[6]][1] == 3, "the section's strings"
    entries = list(struct.iter_unpack("<QQ", data[dynamic[2] : dynamic[2] + dynamic[5]]))
    strings = dict(entries)[5]
    needed = [data[strings + at :].split(b"\0")[0] for tag, at in entries if tag == 1]
    assert needed == [b"libc.so"]
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    if objdump:
        said = subprocess.run(
            [objdump, "-d", "libnet.so"], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout
        assert not re.search(r"\b[wx]18\b", said), "the system's register"


def test_levels_need_what_they_say() -> None:
    names = "x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4+vnni", "x86-64-v4+amx"
    needs = [processors.needs(processors.target(name)) for name in names]
    assert [need.x86[-1] for need in needs] == [0, 0x06, 0xE6, 0xE6, 0x600E6]
    assert [need.tiles for need in needs] == [False] * 4 + [True]
    for less, more in pairwise(needs):
        assert all(a & b == a for a, b in zip(less.x86, more.x86, strict=True))
        assert less != more


def test_damaged_objects_are_refused() -> None:
    with pytest.raises(elf.ElfError, match="not a relocatable object"):
        elf.read(b"\x7fELF\x02\x01" + bytes(64))
    with pytest.raises(elf.ElfError, match="one machine"):
        shared.link("x.so", [], [])


@X86
def test_two_exports_of_one_process_are_both_checked(graph: Any, tmp_path: Path) -> None:
    for level in ("x86-64-v2", "x86-64-v3"):
        done = export(graph, tmp_path, [level], name="again")
        (error,) = check(graph, done).values()
        assert error is None or error < 1e-4


@X86
def test_a_tuned_network_is_exported_by_its_name(tmp_path: Path) -> None:
    done = fastrun.export(network(), tmp_path, ["native"], name="net", policy="heuristic")
    assert done.files.keys() >= {"libnet.so", "libnet.a", "net.h", "net.weights", "net.plan"}
