"""Computes ONNX's operators by their reference implementation in the onnx package, in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.ops import Onnx, operand

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator


# Operators that the reference implementation computes as onnxruntime does, in every opset since 7.
_KNOWN = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot
BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil CenterCropPad Clip Col2Im Compress Concat
Constant ConstantOfShape Conv ConvInteger Cos Cosh CumSum DFT DeformConv Det Div Dropout
DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm Greater GreaterOrEqual GridSample GroupNormalization HammingWindow
HannWindow HardSigmoid HardSwish Identity If IsInf IsNaN LSTM LayerNormalization LeakyRelu Less
LessOrEqual Log Loop MatMul MatMulInteger Max MaxUnpool Mean MeanVarianceNormalization
MelWeightMatrix Min Mish Mod Mul Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot
OptionalGetElement OptionalHasElement Or PRelu Pad Pow QuantizeLinear RNN Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape ReverseSequence RoiAlign Round STFT ScatterElements ScatterND Selu
SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap
ConcatFromSequence SplitToSequence Shape Shrink Sigmoid Sign Sin Sinh Size Slice
SoftmaxCrossEntropyLoss Softplus Softsign Split Sqrt Squeeze StringConcat StringNormalizer
StringSplit RegexFullMatch Sub Sum Swish Tan Tanh TfIdfVectorizer ThresholdedRelu Tile TopK
Transpose Trilu Unique Unsqueeze Where Xor
"""
# Operators for which that holds from some opset on.
_SINCE = {
    **dict.fromkeys(_KNOWN.split(), 7),
    "Softmax": 13,
    "LogSoftmax": 13,
    "Hardmax": 13,
    "Attention": 23,
    "RotaryEmbedding": 23,
    "RMSNormalization": 23,
    "TensorScatter": 24,
    "BitCast": 25,
    "CausalConvWithState": 25,
    "CumProd": 25,
    "LinearAttention": 25,
    "SwiGLU": 25,
    "DequantizeLinear": 19,
    "QLinearConv": 10,
    "QLinearMatMul": 10,
    "MaxPool": 22,
    "AveragePool": 22,
    "GlobalAveragePool": 7,
    "GlobalMaxPool": 7,
    "InstanceNormalization": 7,
    "BatchNormalization": 14,
    "ConvTranspose": 22,
    "DepthToSpace": 13,
    "SpaceToDepth": 13,
    "LRN": 13,
    "Resize": 19,
    "Celu": 12,
    "ImageDecoder": 20,
    "Scan": 9,
    "Scatter": 9,
}
_MACHINE_LEARNING = """
ArrayFeatureExtractor Binarizer DictVectorizer FeatureVectorizer Imputer LabelEncoder
LinearClassifier LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler
TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor
"""


def is_known(operator: str, domain: str, opset: int) -> bool:
    """Whether an operator of an opset is computed right."""
    if domain == "ai.onnx.ml":
        return operator in _MACHINE_LEARNING.split()
    return domain in ("", "ai.onnx") and opset >= _SINCE.get(operator, 10**9)


def compute(op: Onnx, operands: Sequence[Any]) -> tuple[Any, ...]:
    """The outputs of an operator. An absent operand is None, a sequence is a list.

    Raises:
        GraphError: the operator does not fit its operands.
    """
    feeds = {operand(i): x for i, x in enumerate(operands) if x is not None}
    try:
        with np.errstate(all="ignore"):
            found = _evaluator(op.model).run(None, feeds)
    except Exception as error:  # ONNX's operators check little: errors of any kind
        reason = str(error).strip() or type(error).__name__
        raise GraphError(f"{op.operator} cannot be computed: {reason.splitlines()[0]}") from error
    return tuple(x if x is None or isinstance(x, list) else np.asarray(x) for x in found)


@functools.lru_cache(1024)
def _evaluator(model: bytes) -> ReferenceEvaluator:
    """The evaluator of a serialised model."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    from fastrun.graph.reference.corrected import CORRECTED

    return ReferenceEvaluator(onnx.load_from_string(model), new_ops=[*CORRECTED])
