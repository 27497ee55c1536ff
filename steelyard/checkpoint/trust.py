"""Which names a pickle may mention: the few that a state dict needs. Everything else is refused, whatever it is.

Source of the allowlist: torch/_weights_only_unpickler.py (2.13), less what no state dict needs. A file that passes here loads with
weights_only=True. The dangerous list decides nothing about safety, only about words: off the allowlist a name is refused either way,
and one that can run code by itself is called hostile instead of untrusted.
"""

from __future__ import annotations

import _compat_pickle
from typing import Literal

from steelyard.checkpoint.dtypes import ITEM_BYTES, STORAGE_DTYPE

Trust = Literal["needed", "allowed", "unknown", "dangerous"]

TORCHSCRIPT_ALLOWANCE = "torchscript"
"""The word that, among the allowed globals, lets TorchScript (which is code) pass."""

ALLOWED: frozenset[str] = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.set",
        "builtins.complex",
        "torch.Size",
        "torch.device",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
        "torch.per_tensor_symmetric",
        "torch.per_channel_symmetric",
        "torch.per_channel_affine_float_qparams",
    }
    | {f"torch.{name}" for name in STORAGE_DTYPE}
    | {f"torch.cuda.{name}" for name in STORAGE_DTYPE if not name.startswith(("Q", "Untyped"))}
    | {f"torch.{dtype}" for dtype in ITEM_BYTES}
)

_DANGEROUS_MODULES: frozenset[str] = frozenset({
    "os", "posix", "nt", "ntpath", "posixpath", "sys", "subprocess", "_posixsubprocess", "socket", "_socket", "shutil", "runpy",
    "pty", "importlib", "_frozen_importlib", "_frozen_importlib_external", "imp", "ctypes", "_ctypes", "cffi", "webbrowser", "code",
    "codeop", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "types", "operator", "_operator",
    "functools", "_functools", "itertools", "asyncio", "bdb", "pdb", "timeit", "trace", "profile", "cProfile", "doctest", "pip",
    "distutils", "setuptools", "pkgutil", "pydoc", "idlelib", "ensurepip", "venv", "multiprocessing", "concurrent", "threading",
    "_thread", "signal", "tempfile", "urllib", "http", "httplib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "telnetlib",
    "poplib", "imaplib", "nntplib", "xmlrpc", "ssl", "linecache", "zipimport", "zipapp", "site", "sqlite3", "atexit", "commands",
    "popen2", "fileinput", "mmap", "shelve", "dbm", "antigravity", "turtledemo", "lib2to3", "psutil", "paramiko", "fabric", "yaml",
    "jinja2", "numexpr", "llvmlite", "IPython", "torch.hub", "torch.jit", "torch.package", "torch.multiprocessing", "torch._dynamo",
    "torch._inductor", "torch.fx", "torch.classes", "torch.ops", "torch.testing", "numpy.testing", "numpy.f2py", "numpy.distutils",
    "pandas.io", "pandas.core.computation", "logging.config", "torch.utils.cpp_extension", "torch.utils.bottleneck",
    "torch.utils.collect_env", "torch.utils.model_zoo", "torch.utils.model_dump", "torch.utils._pytree", "torch.distributed.rpc",
    "torch.distributed.run", "torch.distributed.launch", "torch.storage._load_from_bytes", "torch.serialization.load",
    "numpy.lib.npyio", "numpy.lib._datasource", "numpy.lib._npyio_impl", "test.support", "unittest.mock", "inspect.getattr_static",
})  # fmt: skip

_DANGEROUS_BUILTINS = (
    "eval", "exec", "compile", "open", "__import__", "globals", "locals", "vars", "input", "breakpoint", "delattr", "setattr",
    "memoryview", "type", "map", "filter", "apply", "execfile", "file", "reload", "exit", "quit", "help", "print",
)  # fmt: skip

_DANGEROUS_NAMES: frozenset[str] = frozenset(
    {f"builtins.{name}" for name in _DANGEROUS_BUILTINS}
    | {"torch.load", "torch.save", "torch.from_file", "torch.compile", "numpy.load", "numpy.fromfile", "numpy.save", "numpy.memmap"}
    | {"io.open", "io.open_code", "io.FileIO", "_io.open", "_io.open_code", "_io.FileIO"}
    | {"pathlib.Path.write_text", "pathlib.Path.unlink", "pandas.read_pickle", "copyreg.add_extension"}
)

_HARMLESS: frozenset[str] = frozenset(
    {
        "functools.partial",  # schedulers are saved with it; alone it runs nothing, what it would run is listed by its own name
        "types.SimpleNamespace",
        "operator.itemgetter",
        "joblib.numpy_pickle.NumpyArrayWrapper",  # how joblib marks an array; reads only its own file
        "urllib.parse.ParseResult",
    }
)

_TORCHSCRIPT_PREFIXES = ("__torch__.", "torch.jit._pickle.", "__main__.")


def normal_name(module: str, name: str) -> tuple[str, str]:
    """*module* and *name* as Python 3 resolves them: pickles of Python 2 say __builtin__ or copy_reg."""
    pair = (module, name)
    if pair in _compat_pickle.NAME_MAPPING:
        module, name = _compat_pickle.NAME_MAPPING[pair]
    elif module in _compat_pickle.IMPORT_MAPPING:
        module = _compat_pickle.IMPORT_MAPPING[module]
    return module, name


def judge_global(path: str, allow: frozenset[str] = frozenset(), *, torchscript: bool = False) -> Trust:
    """Whether a pickle may name *path* ("module.name").

    *allow* adds names; it never lifts a dangerous one. *torchscript* adds the names of compiled classes, which are data of the archive
    and not importable.
    """
    if path in ALLOWED:
        return "needed"
    if torchscript and path.startswith(_TORCHSCRIPT_PREFIXES):
        return "needed"
    if is_dangerous(path):
        return "dangerous"
    return "allowed" if path in allow else "unknown"


def is_dangerous(path: str) -> bool:
    if path in _HARMLESS or path in ALLOWED:
        return False
    if path in _DANGEROUS_NAMES:
        return True
    parts = path.split(".")
    if any(part.startswith("__") and part.endswith("__") and part not in ("__main__", "__torch__") for part in parts):
        return True  # a dotted name may climb: "torch.nn.__builtins__…"
    return any(".".join(parts[:depth]) in _DANGEROUS_MODULES for depth in range(1, min(len(parts), 4) + 1))
