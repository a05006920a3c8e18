"""Cases of the onnx package by the module that makes them, one module after the other.

A case exists from the first import of its module on, in one list of the package, from which its
own runner takes all. So nothing may be taken out of that list.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings

from onnx.backend.test.case import node as package
from onnx.backend.test.case.test_case import TestCase as NodeCase


@functools.cache
def cases_of(module: str) -> tuple[NodeCase, ...]:
    """The cases that the package's module `module`, called like an operator, makes."""
    before = len(package._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = f"{package.__name__}.{module}"
        # Older versions call the module of And by a keyword of Python.
        there = importlib.util.find_spec(name) is not None
        importlib.import_module(name if there else name.removesuffix("_"))
    return tuple(package._NodeTestCases[before:])
