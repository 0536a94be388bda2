"""What is said beside the code about versions, citation, licences and interpreters agrees with it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import pnet_jax

ROOT = Path(__file__).parents[2]
REFUSED = re.compile(r"GPL|GNU|Affero|not found", re.IGNORECASE)


@pytest.fixture(scope="module")
def notices():
    found = importlib.util.spec_from_file_location("notices", ROOT / "docs/development/notices.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def locked(name: str) -> set[str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines if "==" in line}


def test_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert str(cited["version"]) == pnet_jax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (cited["title"], cited["license"]) == (project["name"], project["license"])
    assert cited["message"] and all(author.get("name") or author.get("family-names") for author in cited["authors"])


def test_notices_name_every_package_with_its_licence(notices):
    written = notices.written()
    assert set(notices.declared()) <= set(written), "run make notices"
    assert locked("requirements.lock") <= set(written), "run make notices"
    now = {name: notices.licence(name) or written[name] for name in written}
    assert {name for name in locked("requirements.lock") if now[name] != written[name]} == set(), "run make notices"


def test_no_package_has_a_licence_that_reaches_over_to_ours(notices):
    assert {name: licence for name, licence in notices.written().items() if REFUSED.search(licence)} == {}
    assert REFUSED.search("GNU General Public License v3 (GPLv3)") and REFUSED.search("LGPL-2.1-only")


def test_the_oldest_python_is_the_same_everywhere():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = about["project"]["requires-python"].removeprefix(">=")
    versions = [line.rpartition(" ")[2] for line in about["project"]["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert versions[0] == oldest == about["tool"]["mypy"]["python_version"]
    assert about["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in versions


def test_make_describes_every_target():
    lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
    (phony,) = (line.split()[1:] for line in lines if line.startswith(".PHONY:"))
    described = [line.partition(":")[0] for line in lines if "## " in line and line[0].islower()]
    assert sorted(phony) == sorted(described)
    done = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^  {target} +\S", done.stdout, re.MULTILINE) for target in phony)


def test_hooks_before_a_commit_are_what_make_lint_runs():
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    lint = makefile[makefile.index("\nlint:") : makefile.index("\ndocs:")]

    def tool(command: str) -> str:
        return " ".join(re.match(r"(ruff \w+|[\w-]+)", command)[0].split())

    linted = [tool(command) for command in re.findall(r"BIN\)/(.*)", lint)]
    assert [tool(hook["entry"].removeprefix(".venv/bin/")) for hook in hooks] == linted
