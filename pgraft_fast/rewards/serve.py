"""A reward in a process, or an environment, of its own: answers questions on stdin, see `process`.

This file needs nothing but numpy, and may be copied or run from where it lies:

    python serve.py scorer.py:score

or, in a script of three lines,

    from pgraft_fast.rewards.serve import serve
    from scorer import score
    serve(score)

where score(images, prompts) gets images (B, H, W, C) uint8 and B strings and returns B numbers, None for a sample that
has none. Whatever it takes to import `scorer`, a model to load for instance, is not part of the time-out of a batch.
"""

import importlib
import importlib.util
import json
import math
import os
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterable


def serve(function: Callable[..., Iterable[float | None]]) -> None:
    """Answer until the end of stdin. Exceptions of the function are answers; what it prints goes to stderr."""
    import numpy

    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    say({"ready": True})
    while line := questions.readline():
        question = json.loads(line)
        dtype = numpy.dtype(question["dtype"])
        size = int(numpy.prod(question["shape"])) * dtype.itemsize
        data = bytearray(questions.read(size))
        if len(data) < size:
            return
        samples = numpy.frombuffer(data, dtype).reshape(question["shape"])
        answer = {"id": question["id"]}
        try:
            rewards = _numbers(function(samples, question["prompts"]))
            answer |= {"sample_ids": question["sample_ids"], "rewards": rewards}
        except Exception as error:
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        say(answer)


def _numbers(rewards: "Iterable[float | None]") -> list[float | None]:
    """With None, which is null in JSON, for what is none or not finite."""
    # Iterated over, these would give their letters, or their keys.
    if isinstance(rewards, (str, bytes, dict, set)) or not hasattr(rewards, "__iter__"):
        raise TypeError(f"the reward returned {type(rewards).__name__}, not numbers")
    return [None if reward is None else _number(reward) for reward in rewards]


def _number(reward: object) -> "float | None":
    if isinstance(reward, (str, bytes)):
        raise TypeError(f"the reward returned {reward!r} for a sample, not a number")
    try:
        number = float(reward)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def main() -> None:
    """serve.py file.py:function"""
    file, _, name = sys.argv[-1].rpartition(":")
    if len(sys.argv) != 2 or not file or not name:
        sys.exit("usage: serve.py file.py:function")
    if not file.endswith(".py") or not os.path.isfile(file):  # noqa: PTH113
        sys.exit(f"{file}: there is no such Python file")
    serve(getattr(_module(os.path.realpath(file)), name))


def _module(file: str) -> types.ModuleType:
    """The file's module, with what lies beside it: before what is installed, after the standard library."""
    folder, stem = os.path.split(file[: -len(".py")])
    # The modules beside this file are not the scorer's, and one of them is called http.
    del sys.path[0]
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    place = max((i + 1 for i, x in enumerate(sys.path) if x in own or x.endswith("lib-dynload")), default=0)
    sys.path.insert(place, folder)
    # By its own name, for neighbours that import it, and for pickle.
    name = f"reward_{stem}" if stem in sys.modules or stem in sys.stdlib_module_names else stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        sys.exit(f"{file}: not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "no known parent package" not in str(error):
            raise
        # It has relative imports: a part of the package that its folder is.
        del sys.modules[name]
        package = [stem]
        while len(package) < 2 or os.path.isfile(os.path.join(folder, "__init__.py")):  # noqa: PTH113, PTH118
            folder, last = os.path.split(folder)
            package.insert(0, last)
        sys.path.insert(place, folder)
        module = importlib.import_module(".".join(package))
    return module


if __name__ == "__main__":
    main()
