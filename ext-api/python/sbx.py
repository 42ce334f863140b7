"""Calling extensions from a Python program in a sandbox.

    import sbx
    box = sbx.current()
    box.call("hello.greet", "world")
    add = box.handler("hello.add")      # look it up once, call it often
    add(1)

Python 3.8 or later; nothing but the standard library.
"""

import ctypes
import json
import os
import socket
import struct

_U64 = ctypes.c_uint64
_ABI_VERSION = 6
_BUFFER_LEN = 4096
# Magic, versions, base, length, id, flags, supervisor and number of mappings, entry points.
_SUPERBLOCK = struct.Struct("<8sII4QII8Q")
# Name, mappings, handler table, extension table; then the address of the function that waits.
_WAIT_BEHIND_ENTRY = 32 + 48 * 32 + 8 + 8


class Error(Exception):
    """A call gave no result."""


class NotAttached(Error):
    """This process is in no sandbox: start it with sbx-launcher run."""


class Refused(Error):
    """The handler did not run."""


class Fault(Error):
    """The handler began and did not finish."""


class Failed(Error):
    """The handler returned an error."""


class _Reply(ctypes.Structure):
    _fields_ = [
        ("word", _U64),
        ("buf", ctypes.c_void_p),
        ("cap", ctypes.c_size_t),
        ("len", ctypes.c_size_t),
        ("spill", ctypes.c_void_p),
    ]


class _Block(ctypes.Structure):
    _fields_ = [("handle", _U64), ("words", ctypes.c_void_p), ("reply", ctypes.c_void_p)]


def current():
    """The sandbox of this process."""
    with open("/proc/self/maps", errors="replace") as maps:
        for line in maps:
            if line.rstrip().endswith("/memfd:sbx-control (deleted)"):
                return Sandbox(int(line.split("-")[0], 16))
    raise NotAttached("not in a sandbox: start this program with sbx-launcher run")


def attach(name):
    """Join the sandbox NAME, which is up, from a program that the launcher did not start.

    It gets extensions and upcalls, and goes without what the launcher gives: see the Rust client's
    Sandbox::attach.
    """
    try:
        known = current()
    except NotAttached:
        known = None
    if known is not None:
        if known.name == name:
            return known
        raise Error("this process is in the sandbox %s; a process is in one at most" % known.name)
    uid = os.getuid()
    directory = "/run/sbx" if uid == 0 else "/run/user/%d/sbx" % uid
    if uid != 0 and not os.path.isdir("/run/user/%d" % uid):
        directory = "/tmp/sbx-%d" % uid
    path = "%s/%s/control" % (directory, name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise Error("no sandbox named %s is up (%s: %s)" % (name, path, error)) from None
        connection.send(json.dumps({"request": "attach"}).encode())
        text, fds, _, _ = socket.recv_fds(connection, 4096, 3)
    answer = json.loads(text)
    if len(fds) != 3:
        raise Error("the supervisor of %s refuses: %s" % (name, answer.get("error", text)))
    try:
        base, join = _map_zones(fds)
    finally:
        for fd in fds:
            os.close(fd)
    status = ctypes.CFUNCTYPE(ctypes.c_int)(join)()
    if status:
        raise Error("joining: %s" % os.strerror(-status))
    return Sandbox(base)


def _map_zones(fds):
    """Map the region as its superblock says; its base, and libos's entry for joining."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                          ctypes.c_int, ctypes.c_int64]
    shared, fixed, private, no_reserve, no_replace = 1, 0x10, 0x22, 0x4000, 0x100000
    head = os.pread(fds[0], _SUPERBLOCK.size, 0)
    fields = _SUPERBLOCK.unpack(head)
    if fields[0] != b"SBXsuper" or fields[1] != _ABI_VERSION:
        raise Error("the sandbox has ABI version %d, this module %d" % (fields[1], _ABI_VERSION))
    records = os.pread(fds[0], fields[8] * 32, _SUPERBLOCK.size + 32)
    for at, length, prot, zone, offset in struct.iter_unpack("<QQIIQ", records):
        flags = shared | fixed | (no_reserve if zone == 2 else 0)
        if zone == 3:
            flags = private | no_reserve | no_replace
        got = libc.mmap(at, length, prot, flags, fds[zone] if zone < 3 else -1, offset)
        if got != at:
            raise Error("mapping %#x: %s" % (at, os.strerror(ctypes.get_errno())))
    return fields[3], fields[13]


class Sandbox:
    """The sandbox whose control zone lies at an address of this process."""

    def __init__(self, base):
        head = _SUPERBLOCK.unpack(ctypes.string_at(base, _SUPERBLOCK.size))
        if head[0] != b"SBXsuper" or head[1] != _ABI_VERSION:
            raise Error("the sandbox has ABI version %d, this module %d" % (head[1], _ABI_VERSION))
        find, release, call = head[10], head[11], head[16]
        # The interpreter's lock is kept: an upcall takes less time than letting go of it. Argument
        # types are left open, since converting them costs more than the call.
        self._call = ctypes.PYFUNCTYPE(ctypes.c_uint32)(call)
        self._find = ctypes.CFUNCTYPE(_U64, ctypes.c_char_p, ctypes.c_size_t)(find)
        self._release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(release)
        at = base + _SUPERBLOCK.size + _WAIT_BEHIND_ENTRY
        self._wait = ctypes.CFUNCTYPE(_U64, _U64)(_U64.from_address(at).value)
        self.name = ctypes.string_at(base + _SUPERBLOCK.size, 32).rstrip(b"\0").decode()
        self._table = base + (64 << 10)
        self._handlers = {}

    def handler(self, name):
        """The handler named extension.handler, as a function."""
        raw = name.encode()
        handle = self._find(raw, len(raw))
        if not handle:
            raise Error("no handler %s: load its extension (sbx-launcher ext load)" % name)
        return self._function(handle)

    def call(self, name, *args):
        """Call a handler by name."""
        function = self._handlers.get(name)
        if function is None:
            function = self._handlers[name] = self.handler(name)
        return function(*args)

    def post(self, name, *words, pid=None, urgent=False):
        """Have a handler run in other processes, with up to four numbers.

        pid: a participant, "any" for whichever waits first, None for all of them. Returns how many
        have the event now. Urgent ones interrupt a process that runs code of its own.
        """
        raw = name.encode()
        handle = self._find(raw, len(raw))
        if not handle:
            raise Error("no handler %s: load its extension (sbx-launcher ext load)" % name)
        if len(words) > 4:
            raise Error("an event carries up to four numbers")
        how, target = {None: (3, 0), "any": (2, 0)}.get(pid, (1, pid))
        # Each is a word, whatever the handler takes it for.
        words = [word & (2**64 - 1) if -2**63 <= word < 0 else word for word in words]
        words += [0] * (4 - len(words))
        return self.call("libos.post", how | (256 if urgent else 0), target, handle, *words)

    def wait(self, seconds=None):
        """Wait until events have been delivered to this process; how many, or 0.

        Those that wait already are delivered at once. Other threads run meanwhile.
        """
        if seconds is not None and not seconds >= 0:
            raise ValueError("a time to wait is 0 or more, or None")
        return self._wait(1 << 60 if seconds is None else int(min(seconds, 1e9) * 1e9))

    def _signature(self, handle):
        row = self._table + (handle & 0xFFFFFFFF) * 256
        name_len, signature_len = struct.unpack("<II", ctypes.string_at(row + 16, 8))
        del name_len
        return ctypes.string_at(row + 24 + 64, signature_len).decode()

    def _function(self, handle):
        """A function made for the handler's signature.

        Each call takes a set of words, reply and buffer from a list and puts it back: taking from
        a list is one step for all threads, so no two ever have the same set, and a forked child
        has a list of its own.
        """
        parameters, _, returns = self._signature(handle).partition(")")
        kinds = [p.split(":")[1].strip() for p in parameters[1:].split(",") if ":" in p]
        returns = returns.partition("->")[2].strip()
        plain = not returns
        for wrapper in ("result<", "option<", "result<"):
            if returns.startswith(wrapper):
                returns = returns[len(wrapper):-1]
        fields = []
        for at, kind in enumerate(kinds):
            if kind in ("bytes", "str"):
                fields += [("a%d" % at, ctypes.c_char_p), ("n%d" % at, ctypes.c_size_t)]
            else:
                fields.append(("a%d" % at, _WORDS.get(kind, _U64)))
        words_type = type("Words", (ctypes.Structure,), {"_fields_": fields or [("a", _U64)]})
        release, pool = self._release, []

        def make():
            words, buffer = words_type(), ctypes.create_string_buffer(_BUFFER_LEN)
            reply = _Reply(0, ctypes.addressof(buffer), _BUFFER_LEN, 0, None)
            block = _Block(handle, ctypes.addressof(words), ctypes.addressof(reply))
            return words, reply, buffer, ctypes.byref(block), block

        def take(reply, buffer):
            if reply.spill:
                data = ctypes.string_at(reply.spill, reply.len)
                release(reply.spill)
                reply.spill = None
                return data
            return buffer.raw[: reply.len]

        def failed(status, reply, buffer):
            text = ""
            if status == 2 or status >= 32:
                text = take(reply, buffer).decode(errors="replace")
            reply.len = 0
            if status == 2:
                return Failed(text)
            name = _STATUS.get(status, "status %d" % status)
            if status < 32:
                return Refused(name)
            return Fault("%s: %s" % (name, text))

        source = _source(kinds, returns, plain)
        names = {
            "gate": self._call, "pool": pool, "make": make, "take": take, "failed": failed,
            "state": make(),
        }
        exec(source, names)
        return names["call"]


_RANGES = {"u64": (0, 2**64 - 1), "i64": (-2**63, 2**63 - 1)}

_WORDS = {"i64": ctypes.c_int64, "f64": ctypes.c_double, "bool": ctypes.c_uint64}

_STATUS = {
    16: "stale handle: the extension was unloaded; look the handler up again",
    17: "every context of the sandbox is in use",
    18: "too many upcalls within upcalls",
    19: "a signal handler made an upcall while its thread was inside one",
    20: "the arguments do not fit the handler's signature",
    21: "this process is not in the sandbox",
    22: "the extension is being restarted, or was unloaded meanwhile; try again",
    23: "the extension failed too often in a row; it is tried again later",
    24: "the target's mailbox is full; post again later",
    25: "the target is no participant, or no longer",
    32: "the handler panicked",
    33: "the handler aborted",
    34: "the handler used a function that the region does not have",
    35: "the extension's heap is full",
    36: "the handler did what region code must not do",
    37: "the handler touched memory that is not its own",
    38: "the handler ran into an illegal instruction",
    39: "the handler divided by zero",
    40: "the handler used up the upcall stack",
    41: "the upcall used more CPU time than its budget",
    42: "the upcall slept or stood still for too long",
}


def _source(kinds, returns, plain):
    """Text of the function for a signature; see Sandbox._function."""
    lines = ["def call(%s):" % ", ".join("a%d" % at for at in range(len(kinds)))]
    if plain and not kinds:
        # Nothing goes in or comes out, so that all threads can have the same set.
        lines = ["def call(gate=gate, block_at=state[3]):", "    status = gate(block_at)"]
        lines.append("    if status > 1: raise failed(status, state[1], state[2])")
        return "\n".join(lines) + "\n"
    lines += [
        "    try: state = pool.pop()",
        "    except IndexError: state = make()",
        "    words, reply, buffer, block_at, block = state",
    ]
    for at, kind in enumerate(kinds):
        name = "a%d" % at
        if kind == "str":
            lines.append("    %s = %s.encode()" % (name, name))
        if kind == "bytes":
            # Of a number, bytes() makes as many zeros.
            lines.append("    if type(%s) is not bytes: %s = bytes(memoryview(%s))" % (name, name, name))
        lines.append("    words.%s = %s" % (name, name))
        if kind in _RANGES:
            # What does not fit, ctypes cuts off.
            lines.append("    if not %d <= %s <= %d: raise OverflowError('%s does not fit %s')"
                         % (_RANGES[kind][0], name, _RANGES[kind][1], name, kind))
        if kind in ("bytes", "str"):
            lines.append("    words.n%d = len(%s)" % (at, name))
    result = {
        "bytes": "take(reply, buffer)",
        "str": "take(reply, buffer).decode(errors='replace')",
        "u64": "reply.word",
        "i64": "reply.word - (reply.word >> 63 << 64)",
        "bool": "reply.word != 0",
        "f64": "__import__('struct').unpack('<d', reply.word.to_bytes(8, 'little'))[0]",
    }.get(returns, "None")
    lines += [
        "    status = gate(block_at)",
        "    if status > 1:",
        "        error = failed(status, reply, buffer)",
        "        pool.append(state)",
        "        raise error",
        "    result = None if status else %s" % result if result != "None" else "    result = None",
        "    pool.append(state)",
        "    return result",
    ]
    return "\n".join(lines) + "\n"
