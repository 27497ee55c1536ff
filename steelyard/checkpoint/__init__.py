"""What is inside a weights file, may it be trusted, does it load. Nothing here imports torch; only the load check's child process does."""

from steelyard.checkpoint.certificate import Certificate, certificate_path, read_certificate, write_certificate
from steelyard.checkpoint.deep_compare import by_bytes, where_it_can
from steelyard.checkpoint.diff import PartDiff, TensorDiff, compare
from steelyard.checkpoint.inspect import inspect
from steelyard.checkpoint.inspection import Inspection, StorageInfo, TensorInfo
from steelyard.checkpoint.load import LoadReport, load_check, load_inspected
from steelyard.checkpoint.reasons import Reason, Verdict
from steelyard.checkpoint.signature import Fit, Signature, fits, signature, signature_from_json, signature_of
from steelyard.checkpoint.verdict import Aspect, ByteProof, Judgement, judge

__all__ = [
    "Aspect",
    "ByteProof",
    "Certificate",
    "Fit",
    "Inspection",
    "Judgement",
    "LoadReport",
    "PartDiff",
    "Reason",
    "Signature",
    "StorageInfo",
    "TensorDiff",
    "TensorInfo",
    "Verdict",
    "by_bytes",
    "certificate_path",
    "compare",
    "fits",
    "inspect",
    "judge",
    "load_check",
    "load_inspected",
    "read_certificate",
    "signature",
    "signature_from_json",
    "signature_of",
    "where_it_can",
    "write_certificate",
]
