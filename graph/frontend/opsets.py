"""The versions of operators that a model or function uses."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from fastrun.graph.frontend.file import OLDEST_OPSET
from fastrun.graph.frontend.inline import own_domain


class Opsets:
    """The version of each domain; that of a domain which is not imported counts as 1."""

    def __init__(self, imported: Iterable[onnx.OperatorSetIdProto], ir_version: int) -> None:
        versions = {own_domain(o.domain): o.version for o in imported}
        self.ids = [helper.make_opsetid(*item) for item in versions.items()]
        self.ir_version = ir_version
        self._versions = versions
        self.checker = onnx.checker.C.CheckerContext()
        self.checker.ir_version = ir_version
        self.checker.opset_imports = versions

    def __getitem__(self, domain: str) -> int:
        return self._versions.get(domain, 1)

    @property
    def outdated(self) -> bool:
        """Whether the opset of ONNX's own operators is too old for the lowering."""
        return self._versions.get("", OLDEST_OPSET) < OLDEST_OPSET
