"""GPU and CPU ops, one folder each: public function, reference.py, registration.py, triton.py, cpu.py.

No models in here. Importing this package imports nothing; import the op: `from camae.kernels.tokenize import tokenize`.
"""

if __name__ == "kernels":
    raise ImportError("the folder kernels/ is installed as camae.kernels: import camae.kernels")
