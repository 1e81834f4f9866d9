"""Stand-in for CuPy: an array library whose arrays refuse to become NumPy arrays by themselves.

`Device` stands for a CuPy array: it computes with its own kind and with Python numbers only, has `.get()`, and raises
on any silent conversion (`__array__`), and when a NumPy array is mixed in. `namespace` stands for the
module. `calls` holds every call of a function or a method: (name, arguments, keywords).
"""

import types

import numpy as np

calls: list[tuple[str, tuple, dict]] = []


def _inner(value):
    if isinstance(value, Device):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array was mixed with device arrays")
    if isinstance(value, list | tuple) and any(isinstance(v, Device | np.ndarray) for v in value):
        return type(value)(_inner(v) for v in value)
    return value


def _outer(value):
    if isinstance(value, np.ndarray | np.generic):
        return Device(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(_outer(v) for v in value)
    return value


class Device(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that lives elsewhere."""

    def __init__(self, host):
        self.host = host

    def get(self):
        return self.host

    def __array__(self, *_, **__):
        raise TypeError("silent conversion to NumPy")

    def __dlpack__(self, **options):
        return self.host.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        kwargs = {k: _inner(v) for k, v in kwargs.items()}
        return _outer(getattr(ufunc, method)(*map(_inner, inputs), **kwargs))

    def __array_namespace__(self, **_):
        return namespace

    def __getitem__(self, key):
        return _outer(self.host[_inner(key)])

    def __setitem__(self, key, value):
        self.host[_inner(key)] = _inner(value)

    def __bool__(self):
        return bool(self.host)

    def __float__(self):
        return float(self.host)

    def __int__(self):
        return int(self.host)

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        raise TypeError("iteration over a device array copies it row by row")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if callable(value):
            return _method(value, name)
        return _outer(value) if isinstance(value, np.ndarray) else value


def _method(function, name):
    def call(*args, **kwargs):
        calls.append((f"ndarray.{name}", args, kwargs))
        return _outer(function(*map(_inner, args), **{k: _inner(v) for k, v in kwargs.items()}))

    return call


def _wrapped(function, name):
    def call(*args, **kwargs):
        calls.append((name, args, kwargs))
        if name in ("asarray", "array"):  # the one way onto the device
            args = tuple(a.host if isinstance(a, Device) else a for a in args)
            return Device(np.array(*args, **kwargs))
        return _outer(function(*map(_inner, args), **{k: _inner(v) for k, v in kwargs.items()}))

    return call


class _Namespace(types.ModuleType):
    def __init__(self, module):
        super().__init__(f"device_{module.__name__}")
        self._module = module
        self._prefix = module.__name__.removeprefix("numpy").removeprefix(".")

    def __getattr__(self, name):
        value = getattr(self._module, name)
        if isinstance(value, types.ModuleType):
            return _Namespace(value)
        name = f"{self._prefix}.{name}".removeprefix(".")
        return _wrapped(value, name) if callable(value) and not isinstance(value, type) else value


namespace = _Namespace(np)
