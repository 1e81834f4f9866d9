"""One module per op: reference, kernel, registration, configuration table. No models in here.

Importing this package imports nothing; import the op: `from camae.kernels.tokenize import tokenize`.
"""

if __name__ == "kernels":
    raise ImportError("the folder kernels/ is installed as camae.kernels: import camae.kernels")
