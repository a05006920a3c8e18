"""Links objects into a shared library that any ELF loader takes, without a linker.

The library names no other library, so that it loads in processes of glibc and of musl. Its code is
position-independent, calls to the C library go through stubs, and only its data are relocated when
it is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from fastrun.kernels.native.elf import (
    ALLOC,
    EXECUTE,
    WRITE,
    ElfError,
    Section,
    Symbol,
    definitions,
    read,
)
from fastrun.kernels.native.relocations import MACHINES, Machine, lay_out, up

_READ, _RUN, _CHANGE = 4, 5, 6  # flags of segments


def link(
    name: str,
    objects: Sequence[bytes],
    exports: Iterable[str],
    blobs: Mapping[str, bytes] | None = None,
    needed: Sequence[str] = (),
) -> bytes:
    """A shared library of objects, of which other programs see `exports`.

    `blobs` are read-only data that the objects refer to by name. A loader loads the libraries that
    are `needed`, too. What no object defines is left to
    the process that loads the library: see `imports`.

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
    library = _Library(name, machine, sections, defined, sorted(exports), sorted(wanted), needed)
    return library.written()


def imports(objects: Sequence[bytes], given: Iterable[str] = ()) -> set[str]:
    """The symbols that neither the objects define nor are `given`."""
    parts = [read(data) for data in objects]
    known = {s.name for p in parts for s in p.symbols if s.section is not None} | set(given)
    used = {r.symbol.name for p in parts for s in p.sections for r in s.relocations}
    return used - known - {""}


class _Library:
    """The layout of a library in memory and in the file.

    Its three segments have pages of their own in memory, which may be large; in the file they lie
    side by side. A loader maps the file's page that holds a border twice.
    """

    def __init__(
        self,
        name: str,
        machine: Machine,
        sections: Sequence[Section],
        defined: Mapping[str, Symbol],
        exports: Sequence[str],
        wanted: Sequence[str],
        needed: Sequence[str],
    ) -> None:
        self._name, self._machine, self._defined = name, machine, defined
        self._needed = needed
        self._exports, self._wanted = exports, wanted
        self._code = [s for s in sections if s.flags & EXECUTE]
        self._constant = [s for s in sections if not s.flags & (EXECUTE | WRITE)]
        self._changing = [s for s in sections if s.flags & WRITE]
        # The symbols that the table of addresses holds: those of other libraries first.
        self._slots: dict[str, int] = {x: i for i, x in enumerate(wanted)}

    def written(self) -> bytes:
        """The bytes of the file."""
        dynamic_count, page = 11 + len(self._needed), self._machine.page
        pointers = [
            r for s in self._changing for r in s.relocations
        ]  # all of them are words that hold an address
        strings, places = _strings([*self._wanted, *self._exports, self._name, *self._needed])
        symbols = [*self._wanted, *self._exports]
        at = 64 + 56 * 5
        symbols_at = at = up(at, 8)
        at += 24 * (len(symbols) + 1)
        hash_at = at = up(at, 8)
        at += 4 * (2 + 1 + len(symbols) + 1)
        strings_at = at
        at += len(strings)
        relocations_at = at = up(at, 8)
        relocation_count = len(self._wanted) + len(pointers)
        at += 24 * relocation_count
        head_end = at
        at = lay_out(self._constant, at)
        constant_end = at
        code_offset = up(constant_end, 64)
        code_at = at = up(constant_end, page) + code_offset % page
        at = lay_out(self._code, at)
        stubs_at = at = up(at, 16)
        at += self._machine.stub_size * len(self._wanted)
        code_end = at
        data_offset = up(code_offset + code_end - code_at, 64)
        data_at = at = up(code_end, page) + data_offset % page
        dynamic_at = at
        at += 16 * dynamic_count
        table_at = at
        at += 8 * len(self._wanted)
        held = [s for s in self._changing if s.data]
        at = lay_out(held, up(at, 64))
        file_end = at
        at = lay_out([s for s in self._changing if not s.data], at)
        memory_end = at

        image = bytearray(file_end)
        for section in [*self._constant, *self._code, *held]:
            image[section.address : section.address + len(section.data)] = section.data
        for i in range(len(self._wanted)):
            stub = self._machine.stub(stubs_at + i * self._machine.stub_size, table_at + 8 * i)
            start = stubs_at + i * self._machine.stub_size
            image[start : start + len(stub)] = stub

        def target(symbol: Symbol) -> int:
            """The address that code uses for a symbol: that of its stub if it is elsewhere."""
            found = symbol if symbol.section is not None else self._defined.get(symbol.name)
            if found is not None:
                return found.address
            return stubs_at + self._machine.stub_size * self._slots[symbol.name]

        dynamic = list[tuple[int, int, int]]()
        for i in range(len(self._wanted)):
            dynamic.append((table_at + 8 * i, (i + 1) << 32 | self._machine.absolute, 0))
        for section in [*self._constant, *self._code]:
            for r in section.relocations:
                place = section.address + r.offset
                if not self._machine.apply(image, place, r, target):
                    raise ElfError(f"relocation {r.kind} in {section.name} is not supported")
        for section in self._changing:
            for r in section.relocations:
                if r.kind != self._machine.absolute:
                    raise ElfError(f"relocation {r.kind} in {section.name} is not supported")
                dynamic.append(
                    (
                        section.address + r.offset,
                        self._machine.relative,
                        target(r.symbol) + r.addend,
                    )
                )
        for i, entry in enumerate(dynamic):
            struct.pack_into("<QQq", image, relocations_at + 24 * i, *entry)

        for i, symbol in enumerate(symbols, 1):
            known = i > len(self._wanted)
            where = self._defined[symbol].address if known else 0
            values = (places[symbol], 0x12, 0, int(known), where, 0)
            struct.pack_into("<IBBHQQ", image, symbols_at + 24 * i, *values)
        chain = [0, *range(2, len(symbols) + 1), 0] if symbols else [0]
        struct.pack_into(
            f"<{3 + len(symbols) + 1}I", image, hash_at, 1, len(symbols) + 1, 1, *chain
        )
        image[strings_at : strings_at + len(strings)] = strings
        entries = [
            *((1, places[x]) for x in self._needed),  # DT_NEEDED
            (14, places[self._name]),  # DT_SONAME
            (4, hash_at),  # DT_HASH
            (5, strings_at),  # DT_STRTAB
            (6, symbols_at),  # DT_SYMTAB
            (10, len(strings)),  # DT_STRSZ
            (11, 24),  # DT_SYMENT
            (7, relocations_at),  # DT_RELA
            (8, 24 * relocation_count),  # DT_RELASZ
            (9, 24),  # DT_RELAENT
            (24, 0),  # DT_BIND_NOW
            (0, 0),
        ]
        for i, pair in enumerate(entries):
            struct.pack_into("<QQ", image, dynamic_at + 16 * i, *pair)

        def offset(address: int) -> int:
            """Where what has an address lies in the file."""
            if address >= data_at:
                return address - data_at + data_offset
            return address - code_at + code_offset if address >= code_at else address

        segments = [
            (1, _READ, 0, constant_end, constant_end, page),
            (1, _RUN, code_at, code_end - code_at, code_end - code_at, page),
            (1, _CHANGE, data_at, file_end - data_at, memory_end - data_at, page),
            (2, _CHANGE, dynamic_at, 16 * dynamic_count, 16 * dynamic_count, 8),
            (0x6474E551, _CHANGE, 0, 0, 0, 16),  # a stack that is not executed
        ]
        for i, (kind, flags, start, size, memory, align) in enumerate(segments):
            segment = (kind, flags, offset(start), start, start, size, memory, align)
            struct.pack_into("<IIQQQQQQ", image, 64 + 56 * i, *segment)
        parts = [
            (".dynsym", 11, ALLOC, symbols_at, 24 * (len(symbols) + 1), 2, 1, 8, 24),
            (".dynstr", 3, ALLOC, strings_at, len(strings), 0, 0, 1, 0),
            (".hash", 5, ALLOC, hash_at, 4 * (4 + len(symbols)), 1, 0, 8, 4),
            (".rela.dyn", 4, ALLOC, relocations_at, 24 * relocation_count, 1, 0, 8, 24),
            (".rodata", 1, ALLOC, head_end, constant_end - head_end, 0, 0, 1, 0),
            (".text", 1, ALLOC | EXECUTE, code_at, code_end - code_at, 0, 0, 16, 0),
            (".dynamic", 6, ALLOC | WRITE, dynamic_at, 16 * dynamic_count, 2, 0, 8, 16),
            (".data", 1, ALLOC | WRITE, table_at, file_end - table_at, 0, 0, 8, 0),
        ]
        names, at_names = _strings([*(part[0] for part in parts), ".shstrtab"])
        sections = [struct.pack("<IIQQQQIIQQ", *(0,) * 10)]
        for part, kind, flags, start, size, link_, info, align, unit in parts:
            head = (at_names[part], kind, flags, start, offset(start), size, link_, info, align,
                    unit)  # fmt: skip
            sections.append(struct.pack("<IIQQQQIIQQ", *head))
        content = image[:constant_end].ljust(code_offset, b"\0") + image[code_at:code_end]
        content = content.ljust(data_offset, b"\0") + image[data_at:file_end]
        names_at = len(content)
        table = up(names_at + len(names), 8)
        head = (at_names[".shstrtab"], 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
        sections.append(struct.pack("<IIQQQQIIQQ", *head))
        content += names + b"\0" * (table - names_at - len(names)) + b"".join(sections)
        number = next(n for n, m in MACHINES.items() if m is self._machine)
        struct.pack_into("<16sHHIQQQIHHHHHH", content, 0, b"\x7fELF\x02\x01\x01", 3, number, 1, 0,
                         64, table, self._machine.flags, 64, 56, 5, 64, len(sections),
                         len(sections) - 1)  # fmt: skip
        return bytes(content)


def _strings(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """A table of strings, and where each begins."""
    table, places = b"\0", dict[str, int]()
    for name in dict.fromkeys(names):
        places[name] = len(table)
        table += name.encode() + b"\0"
    return table, places
