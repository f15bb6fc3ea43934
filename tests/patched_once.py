"""A plugin of pytest by which interpreted kernels take less time: Triton's language is patched once a launch.

To interpret a kernel, Triton replaces what its language offers, and does so again for every function that the
kernel calls, thousands of times a launch. What is replaced already stays as it is, so this is left out; the
launch itself still replaces everything, and takes it back at its end.
"""

from triton import language
from triton.runtime import interpreter

_patch = interpreter._patch_lang


def patch_once(function):
    """As Triton's own, if what the function sees of the language is not patched yet."""
    seen = function.__globals__.values()
    parts = [part for part in (language, language.core) if any(part is module for module in seen)]
    return interpreter._LangPatchScope() if parts and all(map(_is_patched, parts)) else _patch(function)


def _is_patched(part) -> bool:
    return not any(map(language.core.is_builtin, (part.load, part.dot, part.tensor.__add__)))


interpreter._patch_lang = patch_once
