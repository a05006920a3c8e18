"""The weights of an exported network in memory: mapped from their file, or copied.

They begin at a huge page, since a system may then map so much of the file at once. In front of them
lies the number of contexts that share them: the last one to close unmaps them.
"""

from __future__ import annotations

from fastrun.graph.aot.layout import HEAD_BYTES, HUGE_PAGE, MADV_HUGEPAGE, SHARED_BYTES, code

# Bytes around weights: those in front, and room to begin at a huge page.
_AROUND = SHARED_BYTES + HUGE_PAGE


def weights(size: int) -> str:
    """The functions for a file of `size` bytes."""
    return "\n\n".join([_BEHIND, _mapped(size), _COPIED, _DROP])


_BEHIND = f"""define internal ptr @behind(ptr %room) nounwind {{
  %far = getelementptr i8, ptr %room, i64 {_AROUND - 1}
  %address = ptrtoint ptr %far to i64
  %aligned = and i64 %address, {-HUGE_PAGE}
  %start = inttoptr i64 %aligned to ptr
  ret ptr %start
}}"""
"""Where weights begin in the room for them."""


def _mapped(size: int) -> str:
    """Map the file read-only, if it is the one that belongs to this library: an error, the room."""
    return f"""define internal {{ i32, ptr }} @map_weights(ptr %path) nounwind {{
entry:
  %file = call i32 (ptr, i32, ...) @open(ptr %path, i32 524288)
  %opened = icmp sge i32 %file, 0
  br i1 %opened, label %measure, label %missing
measure:
  %size = call i64 @lseek(i32 %file, i64 0, i32 2)
  %whole = icmp eq i64 %size, {size}
  br i1 %whole, label %map, label %unlike
map:
  %room = call ptr @mmap(ptr null, i64 {room_size(size)}, i32 3, i32 16418, i32 -1, i64 0)
  %room.address = ptrtoint ptr %room to i64
  %none = icmp eq i64 %room.address, -1
  br i1 %none, label %full, label %fill
fill:
  %wanted = call ptr @behind(ptr %room)
  %start = call ptr @mmap(ptr %wanted, i64 {size}, i32 1, i32 18, i32 %file, i64 0)
  %closed = call i32 @close(i32 %file)
  %address = ptrtoint ptr %start to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %lost, label %advise
advise:
  %advised = call i32 @madvise(ptr %start, i64 {size}, i32 {MADV_HUGEPAGE})
  br label %compare
compare:
  %i = phi i64 [ 0, %advise ], [ %next, %same ]
  %a.at = getelementptr i64, ptr %start, i64 %i
  %b.at = getelementptr i64, ptr @head, i64 %i
  %a = load i64, ptr %a.at, align 8
  %b = load i64, ptr %b.at, align 8
  %equal = icmp eq i64 %a, %b
  br i1 %equal, label %same, label %foreign
same:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, {HEAD_BYTES // 8}
  br i1 %more, label %compare, label %done
done:
  store atomic i64 1, ptr %room monotonic, align 8
  %good = insertvalue {{ i32, ptr }} {{ i32 0, ptr poison }}, ptr %room, 1
  ret {{ i32, ptr }} %good
foreign:
  %freed = call i32 @munmap(ptr %room, i64 {room_size(size)})
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
unlike:
  %shut = call i32 @close(i32 %file)
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
full:
  %shut.too = call i32 @close(i32 %file)
  ret {{ i32, ptr }} {{ i32 {code("MEMORY")}, ptr null }}
lost:
  %dropped = call i32 @munmap(ptr %room, i64 {room_size(size)})
  br label %missing
missing:
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_MISSING")}, ptr null }}
}}"""


_COPIED = f"""define internal {{ i32, ptr }} @copy_weights(ptr %packed, i64 %size) nounwind {{
  %whole = add i64 %size, {_AROUND}
  %room = call ptr @mmap(ptr null, i64 %whole, i32 3, i32 34, i32 -1, i64 0)
  %address = ptrtoint ptr %room to i64
  %none = icmp eq i64 %address, -1
  br i1 %none, label %full, label %fill
fill:
  %start = call ptr @behind(ptr %room)
  %advised = call i32 @madvise(ptr %start, i64 %size, i32 {MADV_HUGEPAGE})
  call void @llvm.memcpy.p0.p0.i64(ptr %start, ptr %packed, i64 %size, i1 false)
  store atomic i64 1, ptr %room monotonic, align 8
  %good = insertvalue {{ i32, ptr }} {{ i32 0, ptr poison }}, ptr %room, 1
  ret {{ i32, ptr }} %good
full:
  ret {{ i32, ptr }} {{ i32 {code("MEMORY")}, ptr null }}
}}"""
"""Copy weights into huge pages of this process, where the system grants them."""


_DROP = """define internal void @drop(ptr %room, i64 %size) nounwind {
  %nothing = icmp eq ptr %room, null
  br i1 %nothing, label %out, label %unmap
unmap:
  %done = call i32 @munmap(ptr %room, i64 %size)
  br label %out
out:
  ret void
}"""
"""Return the room of weights, if they have one of their own."""


def room_size(size: int) -> int:
    """Bytes that weights of `size` bytes take with what is in front of them."""
    return size + _AROUND
