"""What TIR lacks, as LLVM IR text: atomics, waiting, and loading a pointer from memory.

TVM gives every function of an imported module the linkage `available_externally`, declarations too, so the text must
declare nothing: the pause hint and the system calls are inline assembly, chosen by architecture.

Threads share one 64-bit *ticket*: the number of the call that runs, and how many of its items have been claimed from
either end. Half of the threads claim from each end, so that two of them read one stretch of memory each: what a core's
prefetchers ask for beyond a claim is then not what the other core reads. A claim is a share of what is left, the first
are large and the last small. A call is over when its items are done, not when every thread has arrived, so a thread
that has no core, or has not started yet, delays nobody unless it holds a claim. Who finds nothing left to claim waits
for the next ticket: it spins, and then sleeps in the kernel, which frees its core for the thread it waits for.
"""

from __future__ import annotations

# int32 offsets into `sync`, a cache line apart
TICKET, DONE, SLEEPERS, SPINS, PROGRESS, CURSORS, LINE = 0, 16, 32, 48, 64, 80, 16
# Words at PROGRESS, of runs that make their calls several times (see `cpu.sample.tally`): how many steps the walker may
# still make, if any, before it returns, how many are wanted in all, and how many have been made. Another thread may set
# INTERRUPT while they run: no step follows the one under way.
REPEATS, LEFT, MADE, INTERRUPT = 0, 1, 2, 3
# Numbers by which the text so far changes the logits of a row; COUNTS is 1 where its tokens must be counted for that.
REPETITION, FREQUENCY, PRESENCE, COUNTS, PENALTIES = 0, 1, 2, 3, 4
STOPS = 64  # tokens after which no step follows, for each row; -1 where there are fewer
MAX_THREADS = 64
CALL, END = 48, 24  # bits of the ticket below the call, and of a count of items that were claimed from one end
MAX_CALLS = (1 << 64 - CALL) - 1
SYNC_WORDS = CURSORS + LINE * MAX_THREADS  # int32 words of the `sync` buffer; all zero before the first step

_PAUSE = {"x86_64": "pause", "aarch64": "isb"}
_FUTEX = {  # a system call with four arguments; its number follows
    "x86_64": 'call i64 asm sideeffect "syscall", '
    '"={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory}"(i64 202, ',
    "aarch64": 'call i64 asm sideeffect "svc #0", "={x0},{x8},{x0},{x1},{x2},{x3},~{memory}"(i64 98, ',
}
_WAIT, _WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, of one process


def llvm_ir(architecture: str) -> str:
    """The helper functions for `architecture`: x86_64 or aarch64. A row of `table` has `stride` words (`table.row`).

    mlc_pointer(table, i): the i-th 8-byte word of the table, as a pointer.
    mlc_next(table, sizes, call, last, stride): the first call from `call` on that these sizes make, or `last`.
    mlc_following(table, sizes, sync, call, last, stride): the same, but the first call of all in place of `last` while
        there are repeats.
    mlc_call(sync): the call that runs now.
    mlc_claim(sync, call, items, grain, shares, thread): claims items of `call`, a part in `shares` of what is left and
        at least `grain`; returns the first of them in the upper half and their count in the lower, or -1 when the call
        is over.
    mlc_done(sync, count, items): marks claimed items as done; returns 1 if these were the last.
    mlc_publish(sync, call): makes `call` the one that runs; for the thread that ended the one before.
    """
    futex = _FUTEX[architecture]
    return f"""
define ptr @mlc_pointer(ptr %table, i64 %i) alwaysinline nounwind {{
  %p = getelementptr ptr, ptr %table, i64 %i
  %v = load ptr, ptr %p
  ret ptr %v
}}

define i32 @mlc_next(ptr %table, ptr %sizes, i32 %from, i32 %last, i64 %stride) alwaysinline nounwind {{
entry:
  br label %test
test:
  %call = phi i32 [%from, %entry], [%following, %skip]
  %more = icmp slt i32 %call, %last
  br i1 %more, label %guard, label %out
guard:
  %wide = sext i32 %call to i64
  %base = mul i64 %wide, %stride
  %row = getelementptr i64, ptr %table, i64 %base
  %slot.p = getelementptr i64, ptr %row, i64 2
  %low.p = getelementptr i64, ptr %row, i64 3
  %high.p = getelementptr i64, ptr %row, i64 4
  %slot = load i64, ptr %slot.p
  %low = load i64, ptr %low.p
  %high = load i64, ptr %high.p
  %size.p = getelementptr i32, ptr %sizes, i64 %slot
  %size.narrow = load i32, ptr %size.p
  %size = sext i32 %size.narrow to i64
  %above = icmp sle i64 %low, %size
  %below = icmp sle i64 %size, %high
  %made = and i1 %above, %below
  br i1 %made, label %out, label %skip
skip:
  %following = add i32 %call, 1
  br label %test
out:
  ret i32 %call
}}

define i32 @mlc_following(ptr %table, ptr %sizes, ptr %sync, i32 %from, i32 %last, i64 %stride) alwaysinline nounwind {{
entry:
  %next = call i32 @mlc_next(ptr %table, ptr %sizes, i32 %from, i32 %last, i64 %stride)
  %ended = icmp eq i32 %next, %last
  br i1 %ended, label %end, label %out
end:
  %repeats.p = getelementptr i32, ptr %sync, i64 {PROGRESS + REPEATS}
  %repeats = load i32, ptr %repeats.p
  %more = icmp sgt i32 %repeats, 0
  br i1 %more, label %again, label %out
again:
  %first = call i32 @mlc_next(ptr %table, ptr %sizes, i32 0, i32 %last, i64 %stride)
  br label %out
out:
  %result = phi i32 [%next, %entry], [%next, %end], [%first, %again]
  ret i32 %result
}}

define i32 @mlc_call(ptr %sync) alwaysinline nounwind {{
  %ticket = load atomic i64, ptr %sync acquire, align 8
  %high = lshr i64 %ticket, {CALL}
  %call = trunc i64 %high to i32
  ret i32 %call
}}

define i64 @mlc_claim(ptr %sync, i32 %call, i32 %items, i32 %grain, i32 %shares, i32 %thread) alwaysinline nounwind {{
entry:
  %sleepers.p = getelementptr i32, ptr %sync, i64 {SLEEPERS}
  %spins.p = getelementptr i32, ptr %sync, i64 {SPINS}
  %call.p = getelementptr i32, ptr %sync, i64 {TICKET + 1}
  %spins = load i32, ptr %spins.p
  %odd = and i32 %thread, 1
  %from.end = icmp eq i32 %odd, 1
  br label %look
look:
  %spun = phi i32 [0, %entry], [%spun, %claim], [%spun.next, %wait], [%spins, %sleep]
  %ticket = load atomic i64, ptr %sync acquire, align 8
  %now.wide = lshr i64 %ticket, {CALL}
  %now = trunc i64 %now.wide to i32
  %current = icmp eq i32 %now, %call
  br i1 %current, label %left, label %over
left:
  %front.wide = and i64 %ticket, {(1 << END) - 1}
  %front = trunc i64 %front.wide to i32
  %back.high = lshr i64 %ticket, {END}
  %back.wide = and i64 %back.high, {(1 << END) - 1}
  %back = trunc i64 %back.wide to i32
  %taken = add i32 %front, %back
  %rest = sub i32 %items, %taken
  %some = icmp sgt i32 %rest, 0
  br i1 %some, label %claim, label %wait
claim:
  %share = sdiv i32 %rest, %shares
  %enough = icmp sgt i32 %share, %grain
  %wanted = select i1 %enough, i32 %share, i32 %grain
  %inside = icmp slt i32 %wanted, %rest
  %count = select i1 %inside, i32 %wanted, i32 %rest
  %count.wide = zext i32 %count to i64
  %count.back = shl i64 %count.wide, {END}
  %more = select i1 %from.end, i64 %count.back, i64 %count.wide
  %new = add i64 %ticket, %more
  %result = cmpxchg ptr %sync, i64 %ticket, i64 %new acq_rel acquire
  %mine = extractvalue {{i64, i1}} %result, 1
  br i1 %mine, label %claimed, label %look
claimed:
  %end = sub i32 %items, %back
  %last = sub i32 %end, %count
  %lo = select i1 %from.end, i32 %last, i32 %front
  %lo.wide = zext i32 %lo to i64
  %lo.high = shl i64 %lo.wide, 32
  %claimed.both = or i64 %lo.high, %count.wide
  ret i64 %claimed.both
wait:
  %spun.next = add i32 %spun, 1
  call void asm sideeffect "{_PAUSE[architecture]}", "~{{memory}}"()
  %long = icmp sgt i32 %spun.next, %spins
  br i1 %long, label %sleep, label %look
sleep:
  %before = atomicrmw add ptr %sleepers.p, i32 1 seq_cst
  %seen = lshr i64 %ticket, 32
  %slept = {futex}ptr %call.p, i64 {_WAIT}, i64 %seen, i64 0)
  %after = atomicrmw sub ptr %sleepers.p, i32 1 seq_cst
  br label %look
over:
  ret i64 -1
}}

define i32 @mlc_done(ptr %sync, i32 %count, i32 %items) alwaysinline nounwind {{
  %done.p = getelementptr i32, ptr %sync, i64 {DONE}
  %before = atomicrmw add ptr %done.p, i32 %count acq_rel
  %now = add i32 %before, %count
  %last = icmp eq i32 %now, %items
  %flag = zext i1 %last to i32
  ret i32 %flag
}}

define i32 @mlc_publish(ptr %sync, i32 %call) alwaysinline nounwind {{
entry:
  %done.p = getelementptr i32, ptr %sync, i64 {DONE}
  %sleepers.p = getelementptr i32, ptr %sync, i64 {SLEEPERS}
  %call.p = getelementptr i32, ptr %sync, i64 {TICKET + 1}
  store atomic i32 0, ptr %done.p monotonic, align 4
  %wide = zext i32 %call to i64
  %ticket = shl i64 %wide, {CALL}
  %old = atomicrmw xchg ptr %sync, i64 %ticket seq_cst
  %sleepers = load atomic i32, ptr %sleepers.p seq_cst, align 4
  %any = icmp sgt i32 %sleepers, 0
  br i1 %any, label %wake, label %out
wake:
  %woken = {futex}ptr %call.p, i64 {_WAKE}, i64 2147483647, i64 0)
  br label %out
out:
  ret i32 0
}}
"""
