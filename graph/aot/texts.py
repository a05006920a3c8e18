"""The files beside an exported library: C header, example, Makefile, loader for Python."""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.graph.aot.layout import ERRORS, MOST_THREADS, Interface
from fastrun.graph.aot.ports import Outer, inputs, outputs
from fastrun.graph.core.model import Graph


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _type(x: Outer) -> str:
    return x.type if x.c_type in ("float", "double", f"{x.type}_t") else f"{x.type} as {x.c_type}"


def _in_place(x: Interface) -> str:
    """How inputs and outputs must lie to be used where they are."""
    inputs, lines = len(x.inputs), list[str]()
    for i, (port, place) in enumerate(zip((*x.inputs, *x.outputs), x.in_place, strict=True)):
        if place is None:
            lines.append(f"/* {port.name} is always copied. */")
            continue
        name = f"{x.prefix.upper()}_{f'INPUT{i}' if i < inputs else f'OUTPUT{i - inputs}'}"
        zeros = ", zeros round each plane" if i < inputs and not place.dense else ""
        lines += [
            f"/* {port.name}: {'dense' if place.dense else 'not dense'}{zeros} */",
            f"#define {name}_STRIDES {{{', '.join(map(str, place.strides))}}}",
        ]
        if i < inputs:
            lines.append(f"#define {name}_ORIGIN {place.origin}")
            lines.append(f"#define {name}_ROOM {place.room}")
    return "\n".join(lines)


def header(x: Interface, network: str, targets: Sequence[str]) -> str:
    """The C99 interface."""
    prefix, upper = x.prefix, x.prefix.upper()
    given, found = x.inputs, x.outputs
    sizes = [
        f"#define {upper}_{kind}{i}_SIZE {x.size} /* {x.name}: {_shape(x.shape)} {_type(x)} */"
        for kind, described in (("INPUT", given), ("OUTPUT", found))
        for i, x in enumerate(described)
    ]
    errors = [
        f"    {upper}_{x} = {i}, /* {text} */" for i, (x, text) in enumerate(ERRORS.items(), 1)
    ]
    isas = [f"   {i}: {name}" for i, name in enumerate(targets, 1)]
    weights = "NULL: those in the library" if x.embed else f"path of {prefix}.weights"
    return f"""\
/* {network}, exported by fastrun. Arrays have the model's layout, and are dense unless
   `options` say otherwise. */
#ifndef {upper}_H
#define {upper}_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_INPUTS {len(given)}
#define {upper}_OUTPUTS {len(found)}
{chr(10).join(sizes)}

/* What functions return: 0, or one of these. Nothing prints, exits or runs before `open`. */
enum {{
    {upper}_OK = 0,
{chr(10).join(errors)}
}};

typedef struct {prefix}_net {prefix}_net;

/* Zero what you do not use, and set size to sizeof({prefix}_options). */
typedef struct {{
    size_t size;
    const char *weights; /* {weights} */
    int threads;         /* 1 to {MOST_THREADS}; 0 is 1 */
    int isa;             /* 0: the first that this processor supports, or a number from below */
    void *memory;        /* NULL, or memory of the caller's, aligned to 4096 bytes */
    size_t memory_size;  /* at least {prefix}_memory(threads, isa) */
    const int64_t *const *input_strides;  /* NULL: all inputs are dense; see below */
    const int64_t *const *output_strides; /* the same of outputs */
    int copy_weights; /* 1: copy them into huge pages of this process; 0: share the file's pages */
    int in_place;     /* 1: use arrays where they are, if they lie as said below; 0: copy them */
}} {prefix}_options;

/* Arrays that are not dense are read and written where they are: a part of a larger picture, rows
   with a pitch, another order of axes. For each input (output) strides for the axes of its shape,
   in elements, negative ones too, or NULL for a dense one. The pointer given to `run` is that of
   the element with all indices 0. `open` copies the strides, and clones have them too. */

/* With `in_place` an input is not copied if it has these STRIDES, and its first element lies ORIGIN
   bytes behind a multiple of 64, from which ROOM bytes may be read. An output is not copied if it
   has these STRIDES and its first element lies at a multiple of 64. Others are copied. */
{_in_place(x)}

/* Kinds of processors, by number:
{chr(10).join(isas)} */

/* Make a context. It runs in one thread at a time; `threads` - 1 further threads help it. */
int {prefix}_open({prefix}_net **net, const {prefix}_options *options);

/* Bytes of a context for so many threads; 0 if this processor is not supported. */
size_t {prefix}_memory(int threads, int isa);

/* in[i] and out[i] point to {upper}_INPUTi_SIZE and {upper}_OUTPUTi_SIZE elements. */
int {prefix}_run({prefix}_net *net, const void *const in[], void *const out[]);

/* What an input or output is. Types are called float32, float16, bfloat16, uint8, int64 and so on.
   Elements of float16 and bfloat16 are the 16 bits of each. */
typedef struct {{
    const char *name;
    const char *type;
    const size_t *shape;
    size_t rank;
    size_t bytes;
}} {prefix}_tensor;

/* NULL if there is no input or output of this number. */
const {prefix}_tensor *{prefix}_input(int number);
const {prefix}_tensor *{prefix}_output(int number);

/* A further context that shares the weights. Both are closed, in any order. */
int {prefix}_clone({prefix}_net **copy, const {prefix}_net *net);

void {prefix}_close({prefix}_net *net);

/* The name of the kind of processor whose code runs. */
const char *{prefix}_isa(const {prefix}_net *net);

#ifdef __cplusplus
}}
#endif
#endif
"""


def example(prefix: str, graph: Graph, embed: bool) -> str:
    """A program that runs the network on zeros, or on a file of elements for each input."""
    upper, given, found = prefix.upper(), inputs(graph), outputs(graph)
    arrays = [
        *(f"static {x.c_type} in{i}[{upper}_INPUT{i}_SIZE];" for i, x in enumerate(given)),
        *(f"static {x.c_type} out{i}[{upper}_OUTPUT{i}_SIZE];" for i, x in enumerate(found)),
    ]
    ins = ", ".join(f"in{i}" for i in range(len(given)))
    outs = ", ".join(f"out{i}" for i in range(len(found)))
    halves = [_HALVES[name] for name in _HALVES if name in {x.type for x in found}]
    sums = [_sum(prefix, i, x) for i, x in enumerate(found)]
    weights = "NULL" if embed else f'"{prefix}.weights"'
    return f"""\
/* ./example [threads [a file of elements for each input]]: prints the outputs' sums. */
#include <stdio.h>
#include <stdlib.h>
#include "{prefix}.h"

{chr(10).join([*arrays, *halves])}

int main(int argc, char **argv) {{
    const void *const in[] = {{{ins}}};
    void *const out[] = {{{outs}}};
    void *const filled[] = {{{ins}}};
    {prefix}_options options = {{0}};
    {prefix}_net *net;
    options.size = sizeof options;
    options.weights = {weights};
    options.threads = argc > 1 ? atoi(argv[1]) : 1;
    int error = {prefix}_open(&net, &options);
    if (error) {{
        fprintf(stderr, "open: error %d, see {prefix}.h\\n", error);
        return 1;
    }}
    for (int i = 0; i < {upper}_INPUTS && i + 2 < argc; i++) {{
        FILE *file = fopen(argv[i + 2], "rb");
        size_t bytes = {prefix}_input(i)->bytes;
        if (!file || fread(filled[i], 1, bytes, file) != bytes) {{
            fprintf(stderr, "%s: not %zu bytes\\n", argv[i + 2], bytes);
            return 1;
        }}
        fclose(file);
    }}
    error = {prefix}_run(net, in, out);
    if (error) {{
        fprintf(stderr, "run: error %d, see {prefix}.h\\n", error);
        return 1;
    }}
    printf("%s\\n", {prefix}_isa(net));
{chr(10).join(sums)}
    {prefix}_close(net);
    return 0;
}}
"""


_HALVES = {
    "float16": """
static double of_float16(uint16_t bits) {
    double value = bits & 0x3ff;
    int exponent = bits >> 10 & 31;
    if (exponent) value += 1024;
    for (; exponent > 1; exponent--) value *= 2;
    return (bits & 0x8000 ? -value : value) / 16777216;
}""",
    "bfloat16": """
static double of_bfloat16(uint16_t bits) {
    union { uint32_t word; float value; } both = {(uint32_t)bits << 16};
    return both.value;
}""",
}
"""Functions of C for the finite numbers of types that it lacks."""


def _sum(prefix: str, number: int, x: Outer) -> str:
    call = f"of_{x.type}" if x.type in _HALVES else "(double)"
    return f"""\
    {{
        double sum = 0;
        for (size_t j = 0; j < {prefix.upper()}_OUTPUT{number}_SIZE; j++)
            sum += {call}(out{number}[j]);
        printf("output {number}: sum %.9g, first %.9g\\n", sum, {call}(out{number}[0]));
    }}"""


def makefile(prefix: str, triple: str) -> str:
    """Builds the example against the shared library."""
    machine = triple.partition("-")[0]
    cross = "" if machine == "x86_64" else f"{machine}-linux-gnu-"
    return f"""# make: the example with the shared library; make static: with the archive.
CC ?= {cross}cc

example: example.c {prefix}.h lib{prefix}.so
\t$(CC) -std=c99 -O2 -o $@ example.c -L. -l{prefix} -Wl,-rpath,'$$ORIGIN' -lpthread

static: example.c {prefix}.h lib{prefix}.a
\t$(CC) -std=c99 -O2 -o example example.c lib{prefix}.a -lpthread
"""


def objects_makefile(prefix: str, objects: Sequence[str], libraries: str) -> str:
    """Builds the example of objects for another system's linker."""
    parts = " ".join(objects)
    return f"""# make: the example, by a C compiler for the system.
example: example.c {prefix}_os.c {prefix}.h {parts}
\t$(CC) -O2 -o $@ example.c {prefix}_os.c {parts} {libraries}
"""


def pkg_config(prefix: str, graph: Graph) -> str:
    """A .pc file for the folder that it lies in."""
    return f"""folder=${{pcfiledir}}

Name: {prefix}
Description: {graph.name}, exported by fastrun
Version: 1
Cflags: -I${{folder}}
Libs: -L${{folder}} -l{prefix} -Wl,-rpath,${{folder}} -lpthread
"""


def cmake(prefix: str) -> str:
    """A package for CMake's find_package, of the folder that it lies in."""
    return f"""# find_package({prefix} CONFIG REQUIRED PATHS this/folder)
# target_link_libraries(app PRIVATE {prefix}::{prefix})
if(NOT TARGET {prefix}::{prefix})
  find_package(Threads REQUIRED)
  add_library({prefix}::{prefix} SHARED IMPORTED)
  set_target_properties({prefix}::{prefix} PROPERTIES
      IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/lib{prefix}.so"
      INTERFACE_INCLUDE_DIRECTORIES "${{CMAKE_CURRENT_LIST_DIR}}"
      INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()
"""


def loader(prefix: str, graph: Graph, embed: bool) -> str:
    """A module that runs the library by ctypes; it needs numpy and nothing of fastrun."""
    given, found = (
        {x.name: (x.shape, x.dtype.numpy_name) for x in described}
        for described in (inputs(graph), outputs(graph))
    )
    return f'''"""{graph.name}, exported by fastrun: `Net().run(x)` gives the outputs by name."""

import ctypes
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
# Shapes and element types; bfloat16, which numpy lacks, is the uint16 of the same bits.
INPUTS = {given!r}
OUTPUTS = {found!r}
ERRORS = {dict(enumerate(ERRORS.values(), 1))!r}


class Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("weights", ctypes.c_char_p),
        ("threads", ctypes.c_int),
        ("isa", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("memory_size", ctypes.c_size_t),
        ("input_strides", ctypes.c_void_p),
        ("output_strides", ctypes.c_void_p),
        ("copy_weights", ctypes.c_int),
        ("in_place", ctypes.c_int),
    ]


class Net:
    """A context of the network; `isa` 0 is the best that this processor supports.

    With `copy_weights` this process has weights of its own, in huge pages.
    """

    def __init__(self, threads=1, isa=0, folder=HERE, copy_weights=False):
        self._library = ctypes.CDLL(str(pathlib.Path(folder) / "lib{prefix}.so"))
        weights = {"None" if embed else f'str(pathlib.Path(folder) / "{prefix}.weights").encode()'}
        options = Options(ctypes.sizeof(Options), weights, threads, isa)
        options.copy_weights = copy_weights
        self._net = ctypes.c_void_p()
        self._check(self._library.{prefix}_open(ctypes.byref(self._net), ctypes.byref(options)))
        self._library.{prefix}_isa.restype = ctypes.c_char_p
        self.isa = self._library.{prefix}_isa(self._net).decode()

    @staticmethod
    def _check(error):
        if error:
            raise RuntimeError(f"{prefix}: {{ERRORS.get(error, error)}}")

    def run(self, *inputs):
        """Outputs by name for the inputs in their order."""
        if len(inputs) != len(INPUTS):
            raise ValueError(f"{{len(INPUTS)}} inputs are needed: {{', '.join(INPUTS)}}")
        given = []
        for x, (name, (shape, kind)) in zip(map(np.asarray, inputs), INPUTS.items()):
            if x.shape != shape:
                raise ValueError(f"{{name}} has shape {{x.shape}} instead of {{shape}}")
            if x.dtype != kind:
                raise ValueError(f"{{name}} is {{x.dtype}}: give it as {{kind}}")
            given.append(np.require(x, requirements="C"))
        found = {{name: np.empty(shape, kind) for name, (shape, kind) in OUTPUTS.items()}}
        pointers = ctypes.c_void_p * len(given), ctypes.c_void_p * len(found)
        self._check(
            self._library.{prefix}_run(
                self._net,
                pointers[0](*(x.ctypes.data for x in given)),
                pointers[1](*(y.ctypes.data for y in found.values())),
            )
        )
        return found

    def close(self):
        self._library.{prefix}_close(self._net)
        self._net = None
'''
