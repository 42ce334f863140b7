"""Calling extensions from a Python program in a sandbox.

    import sbx
    box = sbx.current()
    box.call("hello.greet", "world")
    add = box.handler("hello.add")      # look it up once, call it often
    add(1)

Python 3.8 or later; nothing but the standard library.
"""

import ctypes
import struct
import threading

_U64 = ctypes.c_uint64
_ABI_VERSION = 1
_BUFFER_LEN = 4096


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


def current():
    """The sandbox of this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith("/memfd:sbx-control (deleted)"):
                return Sandbox(int(line.split("-")[0], 16))
    raise NotAttached("not in a sandbox: start this program with sbx-launcher run")


class Sandbox:
    """The sandbox whose control zone lies at an address of this process."""

    def __init__(self, base):
        head = struct.unpack("<8sII4QII3Q", ctypes.string_at(base, 80))
        if head[0] != b"SBXsuper" or head[1] != _ABI_VERSION:
            raise Error("the sandbox has ABI version %d, this module %d" % (head[1], _ABI_VERSION))
        call, find, release = head[9:12]
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint32, _U64, ctypes.c_void_p, ctypes.c_void_p)(call)
        self._find = ctypes.CFUNCTYPE(_U64, ctypes.c_char_p, ctypes.c_size_t)(find)
        self._release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(release)
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

    def _signature(self, handle):
        row = self._table + (handle & 0xFFFFFFFF) * 256
        name_len, signature_len = struct.unpack("<II", ctypes.string_at(row + 16, 8))
        del name_len
        return ctypes.string_at(row + 24 + 64, signature_len).decode()

    def _function(self, handle):
        parameters, _, returns = self._signature(handle).partition(")")
        kinds = [p.split(":")[1].strip() for p in parameters[1:].split(",") if ":" in p]
        returns = returns.partition("->")[2].strip()
        for wrapper in ("result<", "option<", "result<"):
            if returns.startswith(wrapper):
                returns = returns[len(wrapper):-1]
        gate, release, local = self._call, self._release, threading.local()
        words_len = sum(2 if kind in ("bytes", "str") else 1 for kind in kinds)

        def state():
            words = (_U64 * max(words_len, 1))()
            buffer = ctypes.create_string_buffer(_BUFFER_LEN)
            reply = _Reply(0, ctypes.addressof(buffer), _BUFFER_LEN, 0, None)
            local.state = (words, ctypes.addressof(words), reply, ctypes.addressof(reply), buffer)
            return local.state

        def take(reply, buffer):
            if reply.spill:
                data = ctypes.string_at(reply.spill, reply.len)
                release(reply.spill)
                reply.spill = None
                return data
            return buffer.raw[: reply.len]

        def fail(status, reply, buffer):
            text = take(reply, buffer).decode(errors="replace") if status in (2, 32) else ""
            reply.len = 0
            if status == 2:
                raise Failed(text)
            if status < 32:
                raise Refused("refused with status %d" % status)
            raise Fault("status %d: %s" % (status, text))

        def function(*args):
            if len(args) != len(kinds):
                raise TypeError("the handler takes (%s" % parameters[1:])
            try:
                words, words_at, reply, reply_at, buffer = local.state
            except AttributeError:
                words, words_at, reply, reply_at, buffer = state()
            at = 0
            keep = []
            for kind, arg in zip(kinds, args):
                if kind == "u64" or kind == "i64" or kind == "bool":
                    words[at] = arg & 0xFFFFFFFFFFFFFFFF
                    at += 1
                elif kind == "f64":
                    words[at] = struct.unpack("<Q", struct.pack("<d", arg))[0]
                    at += 1
                else:
                    raw = arg.encode() if isinstance(arg, str) else bytes(arg)
                    keep.append(raw)
                    words[at] = ctypes.cast(ctypes.c_char_p(raw), ctypes.c_void_p).value or 0
                    words[at + 1] = len(raw)
                    at += 2
            status = gate(handle, words_at, reply_at)
            if status == 1:
                return None
            if status:
                fail(status, reply, buffer)
            if returns == "bytes":
                return take(reply, buffer)
            if returns == "str":
                return take(reply, buffer).decode(errors="replace")
            if returns == "u64":
                return reply.word
            if returns == "i64":
                return reply.word - (1 << 64) if reply.word >> 63 else reply.word
            if returns == "bool":
                return bool(reply.word)
            if returns == "f64":
                return struct.unpack("<d", struct.pack("<Q", reply.word))[0]
            return None

        return function
