"""What the wheel holds: PGRAFT_FAST_BUILD_EXT=1 pip install --no-build-isolation . puts the library into it, too."""

import os
import sys
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent.parent


class BuildWithLibrary(build_py):
    """build_py without the benchmarks, which come with the source alone; it compiles csrc where it is asked to."""

    def run(self) -> None:
        if not self.editable_mode:
            self.packages = [name for name in self.packages if name != "pgraft_fast_benchmarks"]
        super().run()
        if os.environ.get("PGRAFT_FAST_BUILD_EXT") != "1":
            return
        sys.path.insert(0, str(ROOT))
        from pgraft_fast.ops.extension import build, library_name

        sources = ROOT / "csrc"
        folder = sources if self.editable_mode else Path(self.build_lib) / "pgraft_fast_csrc"
        build(sources, folder / library_name(sources))
