"""Worker threads that wait awake, so that calls of some 10 µs are worth sharing out.

To wake a sleeping thread takes some 40 µs, and a thread that runs Python waits for the GIL. A
worker that has nothing to do stays in machine code for a moment, without the GIL, and looks at its
mailbox again and again: a caller that finds it there hands it a function and its argument, does
its own part, and waits for the end of the other one, in machine code as well. After that moment the
worker sleeps, and callers work alone until it is awake again.

A mailbox is a line of the cache: its state, a function with its argument, and how many callers
hold the worker awake for what they will have for it. The states:
0 nobody is there; 1 the worker looks at it; 2 a caller writes; 3 there is work; 4 it is done;
5 the worker is at it; 6 the caller sleeps until it is done.

Where other programs have the CPUs, a worker may not get to run: a caller that has done its own part
takes back what isn't begun, and one that has waited for long sleeps (a futex), so that it never
keeps the CPU from the thread it waits for.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import executable, memory
from .executable import Code

# serve(mailbox, patience): until nothing has come for so long, or the state is made 0.
SERVE = """
53               push rbx
55               push rbp
4154             push r12
4889fb           mov rbx, rdi
89f5             mov ebp, esi
4189f4           mov r12d, esi
b801000000       mov eax, 0x1
8703             xchg dword ptr [rbx], eax
8b03             mov eax, dword ptr [rbx]
83f803           cmp eax, 0x3
7425             je .+39
85c0             test eax, eax
741c             je .+30
f390             pause
ffcd             dec ebp
75ef             jne .-15
4489e5           mov ebp, r12d
837b1800         cmp dword ptr [rbx+0x18], 0x0
75e6             jne .-24
b801000000       mov eax, 0x1
31c9             xor ecx, ecx
f00fb10b         lock cmpxchg dword ptr [rbx], ecx
75d9             jne .-37
415c             pop r12
5d               pop rbp
5b               pop rbx
c3               ret
b905000000       mov ecx, 0x5
f00fb10b         lock cmpxchg dword ptr [rbx], ecx
75c9             jne .-53
488b7b10         mov rdi, qword ptr [rbx+0x10]
ff5308           call qword ptr [rbx+0x8]
4489e5           mov ebp, r12d
b804000000       mov eax, 0x4
8703             xchg dword ptr [rbx], eax
83f806           cmp eax, 0x6
75b3             jne .-75
4889df           mov rdi, rbx
be81000000       mov esi, 0x81
ba01000000       mov edx, 0x1
b8ca000000       mov eax, 0xca
0f05             syscall
eb9d             jmp .-97
"""

# share(tasks, count): a task is a mailbox (0 for the caller's own), a function and an argument.
# Who isn't at its mailbox leaves its task to the caller. Returns the tasks that others did, a bit
# each. System call 202 of Linux is futex: 128 waits for a number to change, 129 wakes who does.
SHARE = """
53               push rbx
55               push rbp
4154             push r12
4155             push r13
4156             push r14
4889fb           mov rbx, rdi
89f5             mov ebp, esi
4531f6           xor r14d, r14d
4989dc           mov r12, rbx
4531ed           xor r13d, r13d
498b1424         mov rdx, qword ptr [r12]
4885d2           test rdx, rdx
742c             je .+46
b801000000       mov eax, 0x1
b902000000       mov ecx, 0x2
f00fb10a         lock cmpxchg dword ptr [rdx], ecx
751c             jne .+30
498b4c2408       mov rcx, qword ptr [r12+0x8]
48894a08         mov qword ptr [rdx+0x8], rcx
498b4c2410       mov rcx, qword ptr [r12+0x10]
48894a10         mov qword ptr [rdx+0x10], rcx
c70203000000     mov dword ptr [rdx], 0x3
4d0fabee         bts r14, r13
4983c418         add r12, 0x18
41ffc5           inc r13d
4139ed           cmp r13d, ebp
72bf             jb .-63
4989dc           mov r12, rbx
4531ed           xor r13d, r13d
4d0fa3ee         bt r14, r13
720a             jb .+12
498b7c2410       mov rdi, qword ptr [r12+0x10]
41ff542408       call qword ptr [r12+0x8]
4983c418         add r12, 0x18
41ffc5           inc r13d
4139ed           cmp r13d, ebp
72e4             jb .-26
4989dc           mov r12, rbx
4531ed           xor r13d, r13d
4d0fa3ee         bt r14, r13
736e             jae .+112
498b1424         mov rdx, qword ptr [r12]
b9a00f0000       mov ecx, 0xfa0
8b02             mov eax, dword ptr [rdx]
83f804           cmp eax, 0x4
7458             je .+90
83f803           cmp eax, 0x3
751b             jne .+29
be01000000       mov esi, 0x1
f00fb132         lock cmpxchg dword ptr [rdx], esi
75e9             jne .-21
4d0fb3ee         btr r14, r13
498b7c2410       mov rdi, qword ptr [r12+0x10]
41ff542408       call qword ptr [r12+0x8]
eb3e             jmp .+64
f390             pause
ffc9             dec ecx
75d3             jne .-43
b805000000       mov eax, 0x5
be06000000       mov esi, 0x6
f00fb132         lock cmpxchg dword ptr [rdx], esi
7405             je .+7
83f806           cmp eax, 0x6
75b9             jne .-69
4889d7           mov rdi, rdx
be80000000       mov esi, 0x80
ba06000000       mov edx, 0x6
4531d2           xor r10d, r10d
b8ca000000       mov eax, 0xca
0f05             syscall
498b1424         mov rdx, qword ptr [r12]
eb9c             jmp .-98
c70201000000     mov dword ptr [rdx], 0x1
4983c418         add r12, 0x18
41ffc5           inc r13d
4139ed           cmp r13d, ebp
7280             jb .-126
4c89f0           mov rax, r14
415e             pop r14
415d             pop r13
415c             pop r12
5d               pop rbp
5b               pop rbx
c3               ret
"""

# The same, given the address of both arguments; SHARE follows.
SHARE_BOTH = """
488b7708         mov rsi, qword ptr [rdi+0x8]
488b3f           mov rdi, qword ptr [rdi]
"""

# recall(mailbox): the worker goes back to Python.
RECALL = """
b801000000       mov eax, 0x1
31c9             xor ecx, ecx
f00fb10f         lock cmpxchg dword ptr [rdi], ecx
c3               ret
"""

# call(record): the record is a function, six numbers for registers and six for the stack, and two
# floating-point numbers: as many arguments as a matrix product of BLAS has.
CALL = """
53               push rbx
4889fb           mov rbx, rdi
ff7360           push qword ptr [rbx+0x60]
ff7358           push qword ptr [rbx+0x58]
ff7350           push qword ptr [rbx+0x50]
ff7348           push qword ptr [rbx+0x48]
ff7340           push qword ptr [rbx+0x40]
ff7338           push qword ptr [rbx+0x38]
f20f104368       movsd xmm0, qword ptr [rbx+0x68]
f20f104b70       movsd xmm1, qword ptr [rbx+0x70]
488b7b08         mov rdi, qword ptr [rbx+0x8]
488b7310         mov rsi, qword ptr [rbx+0x10]
488b5318         mov rdx, qword ptr [rbx+0x18]
488b4b20         mov rcx, qword ptr [rbx+0x20]
4c8b4328         mov r8, qword ptr [rbx+0x28]
4c8b4b30         mov r9, qword ptr [rbx+0x30]
ff13             call qword ptr [rbx]
4883c430         add rsp, 0x30
5b               pop rbx
c3               ret
"""

_READY = 1
#: Looks at a mailbox before a worker sleeps: some 2 ms, as OpenMP's libraries wait between calls.
_PATIENCE = 1 << 16
_MAILBOX, _HOLDS = 64, 24
_TASK = struct.Struct("=3q")
#: Where the bytes of a bytes object begin.
_BYTES_HEAD = bytes.__basicsize__ - 1


class Crew:
    """The mailboxes of workers, and what they and their callers do.

    Raises:
        OSError: this can't be had on this system.
    """

    def __init__(self, workers: int) -> None:
        if sys.platform != "linux" or not executable.possible() or not _bytes_follow_head():
            raise OSError("workers that wait awake are for Linux on x86-64")
        listings = (SERVE, SHARE_BOTH, SHARE, RECALL, CALL)
        parts = [executable.from_listing(listing) for listing in listings]
        starts = np.cumsum([0, *map(len, parts)])
        code = Code(b"".join(parts)).address
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._serve = ctypes.CFUNCTYPE(None, pointer, number)(code + int(starts[0]))
        #: Shares out the tasks that a record has; a function for chains.
        self.sharer = code + int(starts[1])
        share = code + int(starts[2])
        #: The caller keeps the GIL, for short work, or gives it away.
        self._share_held = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, number)(share)
        self._share_released = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, number)(share)
        self._recall = ctypes.PYFUNCTYPE(None, pointer)(code + int(starts[3]))
        #: Calls the function of a record; itself a function for `share`.
        self.caller = code + int(starts[4])
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self.caller)
        self.call_held = ctypes.PYFUNCTYPE(None, ctypes.c_char_p)(self.caller)
        buffer = np.zeros((workers + 1) * _MAILBOX, np.uint8)
        first = memory.address(buffer) + -memory.address(buffer) % _MAILBOX
        # Never freed: a worker looks at its mailbox to the end of the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer))
        #: Where they are; the caller's own tasks have none.
        self.mailboxes = [0, *range(first, first + workers * _MAILBOX, _MAILBOX)]
        self._guard = threading.Lock()
        self._states = [ctypes.c_int.from_address(place) for place in self.mailboxes[1:]]
        self._holds = [ctypes.c_int.from_address(place + _HOLDS) for place in self.mailboxes[1:]]

    def serve(self, worker: int) -> None:
        """Wait awake for a moment, and do what comes; called by the worker's own thread."""
        self._serve(self.mailboxes[1 + worker], _PATIENCE)

    def recall(self, worker: int) -> None:
        """Let a worker that waits awake go back to Python at once."""
        self._recall(self.mailboxes[1 + worker])

    def awake(self, worker: int) -> bool:
        """Whether a worker waits awake, at this moment."""
        return self._states[worker].value == _READY

    @contextmanager
    def held(self, workers: int) -> Iterator[None]:
        """Inside, the first workers stay awake once they are."""
        self._hold(workers, 1)
        try:
            yield
        finally:
            self._hold(workers, -1)

    def forget_workers(self) -> None:
        """In the child of a fork, where there are none: nobody is at any mailbox."""
        self._guard = threading.Lock()  # another thread may have held it
        for number in (*self._states, *self._holds):
            number.value = 0

    def _hold(self, workers: int, more: int) -> None:
        with self._guard:
            for hold in self._holds[:workers]:
                hold.value += more

    def share(self, work: list[tuple[int, bytes]], *, keep_gil: bool) -> None:
        """Have functions called: the first one by the caller, others by workers that are awake.

        Args:
            work: addresses of functions, and records whose addresses they are called with.
            keep_gil: whether the caller keeps the GIL meanwhile.
        """
        tasks = b"".join(
            [
                _TASK.pack(mailbox, function, id(record) + _BYTES_HEAD)
                for mailbox, (function, record) in zip(self.mailboxes, work, strict=False)
            ]
        )
        call: Any = self._share_held if keep_gil else self._share_released
        call(tasks, len(work))


def _bytes_follow_head() -> bool:
    text = b"as CPython has it"
    return ctypes.string_at(id(text) + _BYTES_HEAD, len(text)) == text
