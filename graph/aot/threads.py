"""The threads of a context: they are started, live in the driver, and end."""

from __future__ import annotations

from fastrun.graph.aot.layout import ARGUMENTS_AT, HANDLES_AT, TEAM_AT, code
from fastrun.kernels.native.driver import JOB_WORDS

THREADS = f"""define internal ptr @live(ptr %argument) nounwind {{
  %context = load ptr, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  %number = load i64, ptr %number.at, align 8
  %team = getelementptr i8, ptr %context, i64 {TEAM_AT}
  call void @serve(ptr %team, i64 %number)
  ret ptr null
}}

define internal void @dismiss(ptr %context, i64 %recruited) nounwind {{
entry:
  %job = alloca [{len(JOB_WORDS)} x i64], align 8
  call void @llvm.memset.p0.i64(ptr %job, i8 0, i64 {8 * len(JOB_WORDS)}, i1 false)
  %threads.at = getelementptr i64, ptr %job, i64 {JOB_WORDS.index("threads")}
  store i64 %recruited, ptr %threads.at, align 8
  %several = icmp ugt i64 %recruited, 1
  br i1 %several, label %call, label %out
call:
  %team = getelementptr i8, ptr %context, i64 {TEAM_AT}
  %gone = call i64 @lead(ptr %team, ptr %job)
  br label %join
join:
  %i = phi i64 [ 1, %call ], [ %next, %join ]
  %handles = getelementptr i8, ptr %context, i64 {HANDLES_AT}
  %handle.at = getelementptr ptr, ptr %handles, i64 %i
  %handle = load ptr, ptr %handle.at, align 8
  %joined = call i32 @pthread_join(ptr %handle, ptr null)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %recruited
  br i1 %more, label %join, label %out
out:
  ret void
}}

define internal i32 @recruit(ptr %context, i64 %threads) nounwind {{
entry:
  %several = icmp ugt i64 %threads, 1
  br i1 %several, label %next, label %good
next:
  %i = phi i64 [ 1, %entry ], [ %i.next, %started ]
  %arguments = getelementptr i8, ptr %context, i64 {ARGUMENTS_AT}
  %offset = mul i64 %i, 16
  %argument = getelementptr i8, ptr %arguments, i64 %offset
  store ptr %context, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  store i64 %i, ptr %number.at, align 8
  %handles = getelementptr i8, ptr %context, i64 {HANDLES_AT}
  %handle = getelementptr ptr, ptr %handles, i64 %i
  %refused = call i32 @pthread_create(ptr %handle, ptr null, ptr @live, ptr %argument)
  %lives = icmp eq i32 %refused, 0
  br i1 %lives, label %started, label %bad
started:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %threads
  br i1 %more, label %next, label %good
good:
  ret i32 0
bad:
  call void @dismiss(ptr %context, i64 %i)
  ret i32 {code("THREADS")}
}}"""
"""Start the other threads of a context, and let them end."""
