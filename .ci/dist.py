"""Build the sdist and the wheel twice, and refuse them if they differ, lack a file, hold one too many, or are too large.

Run by `make dist` in the root of the repository; the files go to `dist/`. Their time stamps are SOURCE_DATE_EPOCH, or the time of the last
commit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from build import ProjectBuilder
from build.env import DefaultIsolatedEnv

MOST_BYTES = 20e6
NEEDED = (
    "pnet_jax/checkpoints/pnet-linear/SHA256SUMS",
    "pnet_jax/checkpoints/pnet-linear/state/d/*",
    "pnet_jax/checkpoints/pnet-small/SHA256SUMS",
    "pnet_jax/checkpoints/pnet-small/state/d/*",
    "pnet_jax/report/templates/report.html",
    "pnet_jax/report/templates/style.css",
    "pnet_jax/py.typed",
    "*.dist-info/licenses/LICENSE",
    "*.dist-info/licenses/THIRD_PARTY_NOTICES.md",
)
ALLOWED = ("pnet_jax/*", "pnet_jax-*.dist-info/*")
UNWANTED = ("*/test_*.py", "*/conftest.py", "*.pyc")


def main(out: Path = Path("dist")) -> None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _output("git", "log", "-1", "--format=%ct")
    shutil.rmtree(out, ignore_errors=True)
    with DefaultIsolatedEnv() as env:
        builder = ProjectBuilder.from_isolated_env(env, ".", runner=_quiet(epoch))
        env.install(builder.build_system_requires)
        for number in ("1", "2"):
            for kind in ("sdist", "wheel"):
                builder.build(kind, out / number)
    for file in sorted((out / "1").iterdir()):
        first, second = (_digest(out / number / file.name) for number in ("1", "2"))
        if first != second:
            sys.exit(f"{file.name}: two builds differ: {first} and {second}")
        file.rename(out / file.name)
        print(f"{first}  {file.name}  {(out / file.name).stat().st_size / 1e6:.1f} MB")
    for number in ("1", "2"):
        shutil.rmtree(out / number)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    check_wheel(wheel)
    with tarfile.open(sdist) as packed:
        if not any(name.endswith("/pnet_jax/py.typed") for name in packed.getnames()):
            sys.exit(f"{sdist}: expected the package, found no pnet_jax/py.typed")
    if find_spec("twine"):
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], check=True)


def check_wheel(wheel: Path) -> None:
    """Refuse a wheel that lacks a file, holds one too many, or is larger than 20 MB."""
    names = zipfile.ZipFile(wheel).namelist()
    missing = [pattern for pattern in NEEDED if not fnmatch.filter(names, pattern)]
    extra = [name for name in names if not any(fnmatch.fnmatch(name, one) for one in ALLOWED)]
    extra += [name for pattern in UNWANTED for name in fnmatch.filter(names, pattern)]
    if missing or extra:
        sys.exit(f"{wheel}: lacks {missing}, and holds {extra[:5]} too many")
    if (size := wheel.stat().st_size) > MOST_BYTES:
        sys.exit(f"{wheel}: expected {MOST_BYTES / 1e6:.0f} MB or less, found {size / 1e6:.1f} MB")
    tracked = _output("git", "ls-files", "pnet_jax").splitlines()
    if untracked := sorted(name for name in set(names) - set(tracked) if name.startswith("pnet_jax/")):
        sys.exit(f"{wheel}: holds {len(untracked)} files that git does not track, such as {untracked[0]}")
    if lost := sorted(set(tracked) - set(names)):
        sys.exit(f"{wheel}: lacks {len(lost)} files of the package, such as {lost[0]}")


def _quiet(epoch: str):
    def run(command, cwd=None, extra_environ=None):
        environ = {**os.environ, **(extra_environ or {}), "SOURCE_DATE_EPOCH": epoch}
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}\n{done.stderr}")

    return run


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
