"""Compiled kernels of the sparse layers.

A kernel is compiled by Numba when it is first needed, for one shape of tile, and kept on disk. It
receives the address of a record (:mod:`prunus.runtime.kernels.records`) and the addresses of its
inputs and outputs. Kernels check no bounds; the layers that call them do.
"""
