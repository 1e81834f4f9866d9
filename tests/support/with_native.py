"""Runs a Python module with another build of camae's native module: `with_native.py MODULE.so -m pytest ...`."""

import importlib.util
import runpy
import sys

path, _, name, *rest = sys.argv[1:]
spec = importlib.util.spec_from_file_location("camae._native", path)
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
sys.modules["camae._native"] = native
sys.argv = [name, *rest]
runpy.run_module(name, run_name="__main__", alter_sys=True)
