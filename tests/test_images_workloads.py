"""Workloads that are built where nobody has run their Makefile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import paths
from harness.errors import ImageError, UsageError
from harness.images import workloads
from harness.images.store import Store
from harness.lab import Lab, Options

PROGRAM = """
#include <stdio.h>
#include "common.h"
int main(void)
{
	printf("%d\\n", common());
	return 0;
}
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one program and what it has in common with others, by the real Makefile."""
    made = tmp_path / "tree"
    folder = made / "testcases" / "workloads"
    folder.mkdir(parents=True)
    (made / "testcases" / "reports").mkdir()
    shutil.copy(paths.source_tree() / "testcases" / "workloads" / "Makefile", folder)
    (folder / "common.h").write_text("int common(void);\n")
    (folder / "common.c").write_text('#include "common.h"\nint common(void) { return 42; }\n')
    (folder / "program.c").write_text(PROGRAM)
    monkeypatch.setattr(paths, "source_tree", lambda: made)
    monkeypatch.delenv("NVH_REPORTS", raising=False)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def said(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def test_they_are_built_once(tree: Path, store: Store) -> None:
    told: list[str] = []
    first = workloads.built(store, progress=told.append)
    assert said(first / "program") == "42\n"
    assert (
        b"not a dynamic executable"
        in subprocess.run(["ldd", first / "program"], capture_output=True, check=False).stderr
    )
    assert workloads.built(store, progress=told.append) == first
    assert len(told) == 1
    assert not (tree / "testcases/workloads/build").exists()


def test_a_changed_source_and_a_new_report_are_built(tree: Path, store: Store) -> None:
    first = workloads.built(store, progress=print)
    common = tree / "testcases/workloads/common.c"
    common.write_text(common.read_text().replace("42", "43"))
    (tree / "testcases/reports/mine.c").write_text(PROGRAM)
    second = workloads.built(store, progress=print)
    assert second != first
    assert said(second / "program") == said(second / "mine") == "43\n"


def test_a_source_that_does_not_compile(tree: Path, store: Store) -> None:
    (tree / "testcases/workloads/program.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(
        ImageError, match=r"not built: program\.c:1:25: error: .nothing. undeclared"
    ):
        workloads.built(store, progress=print)
    assert not list(store.root.glob(f"{workloads.KIND}/*"))


def test_a_make_around_this_one_does_not_matter(
    tree: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n -j1 --jobserver-auth=3,4")
    assert said(workloads.built(store, progress=print) / "program") == "42\n"
    assert tree.is_dir()


def test_a_program_of_somebody_elses(tree: Path, store: Store, tmp_path: Path) -> None:
    ours = workloads.built(store, progress=print)
    source = tmp_path / "mine.c"
    source.write_text(PROGRAM.replace("common()", "common() + 1"))
    program = workloads.compiled(source, ours, store)
    assert (program.name, said(program)) == ("mine", "43\n")
    assert workloads.compiled(source, ours, store) == program
    source.write_text(PROGRAM.replace("common()", "uncommon()"))
    with pytest.raises(ImageError, match=r"mine\.c does not compile: .*uncommon"):
        workloads.compiled(source, ours, store)
    with pytest.raises(UsageError, match=r"no program's source at .*none\.c"):
        workloads.compiled(tmp_path / "none.c", ours, store)
    assert tree.is_dir()


def test_what_make_has_built_is_taken_until_a_source_changes(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "built", lambda *_, **__: tree / "built")
    folder = tree / "testcases" / "workloads"
    assert Lab(Options()).workloads == tree / "built"
    subprocess.run(["make", "-s", "-C", folder], check=True)
    assert Lab(Options()).workloads == folder / "build"
    assert Lab(Options(workloads=tree)).workloads == tree
    os.utime(folder / "common.h")
    assert Lab(Options()).workloads == tree / "built"


def test_what_has_no_source_any_more_is_removed(tree: Path) -> None:
    folder = tree / "testcases" / "workloads"
    report = tree / "testcases" / "reports" / "mail.c"
    report.write_text(PROGRAM)
    for _ in range(2):
        subprocess.run(["make", "-s", "-C", folder], check=True)
    assert workloads.made() == folder / "build"
    assert said(folder / "build" / "mail") == "42\n"
    report.unlink()
    assert workloads.made() is None
    subprocess.run(["make", "-s", "-C", folder], check=True)
    assert workloads.made() == folder / "build"
    assert sorted(file.name for file in (folder / "build").iterdir()) == [
        "common.o", "program", "program.o",
    ]  # fmt: skip
