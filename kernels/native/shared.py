"""Links objects into a shared library that any ELF loader takes, without a linker.

The library names no other library, so that it loads in processes of glibc and of musl. Its code is
position-independent, calls to the C library go through stubs, and only its data are relocated when
it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastrun.kernels.native.elf import ALLOC, ElfError, Section, Symbol, definitions, read
from fastrun.kernels.native.relocations import MACHINES
from fastrun.kernels.native.shared_file import Contents, SharedFile


def link(
    name: str,
    objects: Sequence[bytes],
    exports: Iterable[str],
    blobs: Mapping[str, bytes] | None = None,
    needed: Sequence[str] = (),
) -> bytes:
    """A shared library of objects, of which other programs see `exports`.

    `blobs` are read-only data that the objects refer to by name. A loader loads the libraries that
    are `needed`, too. What no object defines is left to the process that loads the library: see
    `imports`.

    Raises:
        ElfError: objects of several machines, a symbol that is defined twice, an export that is
            missing, or a relocation of a kind that compilers of position-independent code with
            the small code model do not emit.
    """
    parts = [read(data) for data in objects]
    machines = {part.machine for part in parts}
    if len(machines) != 1 or not machines <= set(MACHINES):
        raise ElfError("objects of one machine, x86-64, AArch64 or RISC-V, can be linked")
    machine = MACHINES[machines.pop()]
    extra = [Section(f".rodata.{x}", ALLOC, b, len(b), 4096) for x, b in (blobs or {}).items()]
    defined = definitions(parts)
    defined |= {x.name[8:]: Symbol(x.name, x, 0, False) for x in extra}
    if missing := [x for x in exports if x not in defined]:
        raise ElfError(f"nothing defines {missing[0]}")
    sections = [s for part in parts for s in part.sections if s.size] + extra
    wanted = {
        r.symbol.name
        for s in sections
        for r in s.relocations
        if r.symbol.section is None and r.symbol.name not in defined
    }
    return SharedFile(
        Contents(name, machine, sections, defined, sorted(exports), sorted(wanted), needed)
    ).written()


def imports(objects: Sequence[bytes], given: Iterable[str] = ()) -> set[str]:
    """The symbols that neither the objects define nor are `given`."""
    parts = [read(data) for data in objects]
    known = {s.name for p in parts for s in p.symbols if s.section is not None} | set(given)
    used = {r.symbol.name for p in parts for s in p.sections for r in s.relocations}
    return used - known - {""}
