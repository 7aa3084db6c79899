"""Kernels of the networks' expensive operations, installed as ``sdengine.kernels``.

One module an operation: whether a shape is supported, its variants, what to compile, a launcher.
`reference` says in plain torch and fp32 what each computes, `registry` finds them by name,
`compiling` makes machine code ahead of time. Importing them needs neither torch nor triton; running
or compiling a kernel does.
"""
