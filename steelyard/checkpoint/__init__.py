"""What is inside a weights file, may it be trusted, does it load. Nothing here imports torch; only the load check's child process does."""

from steelyard.checkpoint.inspect import inspect
from steelyard.checkpoint.inspection import Inspection, StorageInfo, TensorInfo
from steelyard.checkpoint.load import LoadReport, load_check, load_inspected
from steelyard.checkpoint.reasons import Reason, Verdict

__all__ = ["Inspection", "LoadReport", "Reason", "StorageInfo", "TensorInfo", "Verdict", "inspect", "load_check", "load_inspected"]
