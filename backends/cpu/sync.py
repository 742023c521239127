"""What TIR lacks, as LLVM IR text: atomics, a spin barrier and loading a pointer from memory.

TVM gives every function of an imported module the linkage `available_externally`, declarations too, so the text must
declare nothing: the pause hint and the yield system call are inline assembly, chosen by architecture.
"""

from __future__ import annotations

ARRIVED, GENERATION, COUNTER, CURSORS, LINE = 0, 16, 32, 48, 16  # int32 offsets into `sync`, a cache line apart
MAX_THREADS = 64
SYNC_WORDS = CURSORS + LINE * MAX_THREADS  # int32 words of the `sync` buffer; all zero before the first step

_PAUSE = {"x86_64": "pause", "aarch64": "yield"}
_YIELD = {  # sched_yield
    "x86_64": 'call i64 asm sideeffect "syscall", "={rax},{rax},~{rcx},~{r11},~{memory}"(i64 24)',
    "aarch64": 'call i64 asm sideeffect "svc #0", "={x0},{x8},~{memory}"(i64 124)',
}
_SPINS = 4000  # pauses; then the core is given to whoever needs it


def llvm_ir(architecture: str) -> str:
    """The helper functions for `architecture` (x86_64 or aarch64).

    mlc_pointer(table, i): the i-th 8-byte word of the table, as a pointer.
    mlc_take(counter, count): claims the next `count` items; returns the first of them.
    mlc_barrier(sync, threads): waits for all threads. The last to arrive resets the item counter.
    """
    return f"""
define ptr @mlc_pointer(ptr %table, i64 %i) alwaysinline nounwind {{
  %p = getelementptr ptr, ptr %table, i64 %i
  %v = load ptr, ptr %p
  ret ptr %v
}}

define i32 @mlc_take(ptr %counter, i32 %count) alwaysinline nounwind {{
  %old = atomicrmw add ptr %counter, i32 %count monotonic
  ret i32 %old
}}

define i32 @mlc_barrier(ptr %sync, i32 %threads) alwaysinline nounwind {{
entry:
  %generation.p = getelementptr i32, ptr %sync, i64 {GENERATION}
  %counter = getelementptr i32, ptr %sync, i64 {COUNTER}
  %generation = load atomic i32, ptr %generation.p acquire, align 4
  %arrived = atomicrmw add ptr %sync, i32 1 acq_rel
  %others = sub i32 %threads, 1
  %last = icmp eq i32 %arrived, %others
  br i1 %last, label %release, label %spin
release:
  store atomic i32 0, ptr %counter monotonic, align 4
  store atomic i32 0, ptr %sync monotonic, align 4
  %old = atomicrmw add ptr %generation.p, i32 1 release
  ret i32 0
spin:
  %i = phi i32 [0, %entry], [%i.next, %again]
  %now = load atomic i32, ptr %generation.p acquire, align 4
  %passed = icmp ne i32 %now, %generation
  br i1 %passed, label %done, label %wait
wait:
  %i.next = add i32 %i, 1
  call void asm sideeffect "{_PAUSE[architecture]}", "~{{memory}}"()
  %long = icmp sgt i32 %i.next, {_SPINS}
  br i1 %long, label %yield, label %again
yield:
  %r = {_YIELD[architecture]}
  br label %again
again:
  br label %spin
done:
  ret i32 0
}}
"""
