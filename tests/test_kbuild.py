"""Building kernels: sources, patches that come and go, configurations, what make is left to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import BuildError, HostError, KernelError, UnfitKernel, UsageError
from harness.guest.boot import booted
from harness.images import fragment, kbuild, kconfig, patches, source
from harness.images.kernel import resolve
from harness.images.store import Store
from harness.images.workspace import Workspace
from harness.lab import Lab, Options
from harness.paths import guest_images
from tests.test_images_kernel import RELEASE, bzimage

#: As much of kbuild as a build touches: configure, compile what changed, link.
MAKEFILE = """\
all:
allnoconfig:
\tgrep -v CONFIG_ABSENT $(KCONFIG_ALLCONFIG) >$(O)/.config
bzImage: $(O)/a.o $(O)/b.o
\tmkdir -p $(O)/arch/x86/boot
\tcat base.img $^ >$(O)/arch/x86/boot/bzImage
\ttouch $(O)/System.map
$(O)/%.o: %.c
\t! grep -n '#error' $< >&2 || { echo "$<:1:2: error: it says so" >&2; exit 1; }
\t@echo CC $<
\tcp $< $@
"""
#: What make modules_install leaves.
INSTALL = f"""
modules:
modules_install:
\tmkdir -p $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}
\ttouch $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/modules.dep
\tln -s $(O) $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/build
\tln -s $(CURDIR) $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/source
"""
PATCH = """\
--- a/a.c
+++ b/a.c
@@ -1,3 +1,3 @@
 one
-two
+zwei
 three
"""


def say(_: str) -> None:
    """Take progress and keep quiet."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache/store")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a kernel source, and a host that has all packages."""
    monkeypatch.setattr(kbuild, "install_packages", lambda: None)
    root = tmp_path / "linux"
    (root / "arch/x86").mkdir(parents=True)
    (root / "arch/x86/Makefile").touch()
    (root / "Kconfig").write_text("config ABSENT\n\tbool\n\tdepends on PCI && MOON\n")
    (root / "Makefile").write_text(MAKEFILE)
    (root / "base.img").write_bytes(bzimage())
    (root / "a.c").write_text("one\ntwo\nthree\n")
    (root / "b.c").write_text("b\n")
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o755)
    (root / "link").symlink_to("a.c")
    return root


def patch(tmp_path: Path, text: str = PATCH, name: str = "one.patch") -> Path:
    file = tmp_path / name
    file.write_text(text)
    return file


def log_of(store: Store, tree: Path) -> str:
    """Return what the last make said."""
    made = source.find(str(tree), store, progress=say)
    (log,) = Workspace.of(made, store).root.glob("objects-*/build.log")
    return log.read_text()


# Building


def test_a_built_kernel_is_a_tree_to_boot(tree: Path, store: Store) -> None:
    built = kbuild.build(str(tree), store)
    found = resolve(str(built.path), store)
    assert (found.release, found.modules) == (RELEASE, None)
    assert found.origin == f"{tree} + base"
    assert found.config is not None
    assert "CONFIG_VIRTIO_BLK=y" in found.config.read_text()
    assert built.unmet == ()
    assert not (tree / ".config").exists()


def test_modules_come_without_links_into_the_workspace(
    tree: Path, tmp_path: Path, store: Store
) -> None:
    with (tree / "Makefile").open("a") as file:
        file.write(INSTALL)
    more = tmp_path / "more.config"
    more.write_text("CONFIG_MODULES=y\n")
    built = kbuild.build(str(tree), store, fragments=[str(more)])
    found = resolve(str(built.path), store)
    assert found.modules == built.path / "lib/modules" / RELEASE
    assert [file.name for file in found.modules.iterdir()] == ["modules.dep"]


def test_the_same_again_is_found_without_make(tree: Path, store: Store) -> None:
    first = kbuild.build(str(tree), store)
    shutil.rmtree(source.build_dir(store))
    assert kbuild.build(str(tree), store) == first


def test_a_changed_line_compiles_one_file(tree: Path, store: Store) -> None:
    first = kbuild.build(str(tree), store)
    (tree / "b.c").write_text("c\n")
    second = kbuild.build(str(tree), store)
    assert log_of(store, tree).count("CC ") == 1
    images = [(one.path / "arch/x86/boot/bzImage").read_bytes() for one in (first, second)]
    assert [image[-2:] for image in images] == [b"b\n", b"c\n"]


def test_a_patch_comes_and_goes(tree: Path, tmp_path: Path, store: Store) -> None:
    plain = kbuild.build(str(tree), store)
    patched = kbuild.build(str(tree), store, patch_files=[patch(tmp_path)])
    assert log_of(store, tree).count("CC ") == 1
    assert b"zwei" in (patched.path / "arch/x86/boot/bzImage").read_bytes()
    assert patched.origin.endswith("+ one.patch")
    assert (tree / "a.c").read_text() == "one\ntwo\nthree\n"
    store.remove(next(one for one in store.entries() if one.path == plain.path))
    again = kbuild.build(str(tree), store)
    assert log_of(store, tree).count("CC ") == 1
    assert b"zwei" not in (again.path / "arch/x86/boot/bzImage").read_bytes()


def test_what_a_patch_holds_names_a_build_not_where_it_lies(
    tree: Path, tmp_path: Path, store: Store
) -> None:
    first = kbuild.build(str(tree), store, patch_files=[patch(tmp_path)])
    moved = patch(tmp_path, name="two.patch")
    assert kbuild.build(str(tree), store, patch_files=[moved]).path == first.path
    moved.write_text(PATCH.replace("zwei", "drei"))
    assert kbuild.build(str(tree), store, patch_files=[moved]).path != first.path


def test_a_patch_that_does_not_apply_is_the_users(tree: Path, tmp_path: Path, store: Store) -> None:
    wrong = patch(tmp_path, PATCH.replace("-two", "-deux"))
    with pytest.raises(UsageError, match=r"one\.patch does not apply: a\.c: .*FAILED") as caught:
        kbuild.build(str(tree), store, patch_files=[wrong])
    assert caught.value.exit_code == 2
    assert kbuild.build(str(tree), store)


def test_a_compile_error_can_be_skipped(tree: Path, tmp_path: Path, store: Store) -> None:
    broken = patch(tmp_path, PATCH.replace("zwei", "#error no"))
    with pytest.raises(
        BuildError, match=r"does not build: .*a\.c:1:2: error: it says so"
    ) as caught:
        kbuild.build(str(tree), store, patch_files=[broken])
    assert caught.value.exit_code == 125
    assert store.entries() == []
    assert kbuild.build(str(tree), store)


def test_what_was_asked_for_and_is_not_so_is_told(tree: Path, tmp_path: Path, store: Store) -> None:
    more = tmp_path / "more.config"
    more.write_text("CONFIG_ABSENT=y\n")
    for _ in range(2):  # built, then found
        built = kbuild.build(str(tree), store, fragments=[str(more)])
        assert built.unmet == ("CONFIG_ABSENT (depends on PCI && MOON; not set: MOON)",)


def test_a_kernel_that_could_not_boot_is_refused(tree: Path, store: Store) -> None:
    lacking = MAKEFILE.replace("CONFIG_ABSENT", "CONFIG_EXT4_FS=")
    (tree / "Makefile").write_text(lacking)
    with pytest.raises(UnfitKernel, match=r"no CONFIG_EXT4_FS \(this source has none\)"):
        kbuild.build(str(tree), store)


def test_a_package_that_cannot_be_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "harness/setup.sh"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\necho 'setup: missing packages: apt-get install bc' >&2\nexit 125\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("harness.paths.__file__", str(script.with_name("paths.py")))
    with pytest.raises(HostError, match="missing packages: apt-get install bc"):
        kbuild.install_packages()


def test_another_configuration_begins_with_the_objects_of_the_last(
    tree: Path, tmp_path: Path, store: Store
) -> None:
    kbuild.build(str(tree), store)
    kbuild.build(str(tree), store, fragments=["iommufd"])
    logs = [file.read_text() for file in source.build_dir(store).glob("work-*/objects-*/build.log")]
    assert sorted(log.count("CC ") for log in logs) == [0, 2]


# Sources


def test_git_tells_a_trees_sources(tree: Path, store: Store) -> None:
    (tree / ".gitignore").write_text("*.o\n.config\n")
    (tree / "new.c").touch()
    (tree / "old.o").touch()
    (tree / ".config").touch()
    git = ["git", "-C", str(tree)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "a.c", "b.c"], check=True)
    (tree / "b.c").unlink()
    files = source.find(str(tree), store, progress=say).files
    assert {"a.c", "new.c", "link"} <= files.keys()
    assert not {"old.o", "b.c", ".config"} & files.keys()


def test_a_tree_built_in_place_without_git_is_refused(tree: Path, store: Store) -> None:
    (tree / ".config").touch()
    with pytest.raises(KernelError, match="mrproper"):
        source.find(str(tree), store, progress=say)


@pytest.mark.parametrize("selector", ["/nowhere", "debian-source:new", "/etc"])
def test_what_is_no_source_is_told_so(store: Store, selector: str) -> None:
    with pytest.raises(KernelError, match=r"debian-source:6\.12"):
        source.find(selector, store, progress=say)


# The workspace


def test_files_that_stay_keep_their_times(tree: Path, tmp_path: Path, store: Store) -> None:
    made = source.find(str(tree), store, progress=say)
    work = Workspace.of(made, store)
    assert work.sync(made, {}, say) == len(made.files)
    old = {path: path.lstat().st_mtime_ns for path in work.tree.rglob("*")}
    os.utime(tree / "b.c")  # another time and the same content
    patched = tmp_path / "patched"
    patched.write_text("new\n")
    made = source.find(str(tree), store, progress=say)
    assert work.sync(made, {"a.c": patched, "fresh/c.c": patched}, say) == 2
    changed = {path.name for path in old if path.lstat().st_mtime_ns != old[path]}
    assert changed - {"source"} == {"a.c"}
    assert (work.tree / "script").stat().st_mode & 0o111
    assert (work.tree / "link").readlink() == Path("a.c")
    assert work.sync(made, {"b.c": None}, say) == 3
    assert not (work.tree / "b.c").exists()
    assert not (work.tree / "fresh/c.c").exists()
    assert work.sync(made, {}, say) == 1
    assert work.sync(made, {}, say) == 0
    assert work.sync(made, {"d/e/f.c": patched}, say) == 1
    assert work.sync(made, {"d": patched}, say) == 2  # a file in a directory's place
    assert work.sync(made, {"d/e/f.c": patched}, say) == 2


def test_a_sync_that_was_killed_is_made_good(
    tree: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source.find(str(tree), store, progress=say)
    work = Workspace.of(made, store)
    work.sync(made, {}, say)
    patched = tmp_path / "patched"
    patched.write_text("new\n")
    with monkeypatch.context() as context:

        def killed(origin: Path, target: Path, **_: bool) -> bool:
            shutil.copy(origin, target)
            raise KeyboardInterrupt

        context.setattr("harness.images.workspace._put", killed)
        with pytest.raises(KeyboardInterrupt):
            work.sync(made, {"a.c": patched}, say)
    work.sync(made, {}, say)
    assert (work.tree / "a.c").read_text() == "one\ntwo\nthree\n"


def test_what_is_linked_to_is_never_written(tree: Path, tmp_path: Path, store: Store) -> None:
    found = source.find(str(tree), store, progress=say)
    ours = source.Source(found.root, "ours", "id", found.files, ours=True)
    work = Workspace.of(ours, store)
    work.sync(ours, {}, say)
    assert (work.tree / "a.c").samefile(tree / "a.c")
    patched = tmp_path / "patched"
    patched.write_text("new\n")
    work.sync(ours, {"a.c": patched}, say)
    assert (tree / "a.c").read_text() == "one\ntwo\nthree\n"
    assert (work.tree / "a.c").read_text() == "new\n"


# Patches


def test_the_files_that_a_patch_names() -> None:
    text = (
        "diff --git a/old.c b/new.c\nrename from old.c\nrename to new.c\n"
        "--- /dev/null\n+++ b/made.h\t2024-01-01\n--- a/gone.c\n+++ /dev/null\n"
        "--- a/../../etc/passwd\n"
    )
    assert patches.touched(text) == {"old.c", "new.c", "made.h", "gone.c"}


def test_files_are_made_removed_and_renamed(tree: Path, tmp_path: Path) -> None:
    text = (
        "diff --git a/b.c b/c.c\nsimilarity index 100%\nrename from b.c\nrename to c.c\n"
        "diff --git a/n/new.c b/n/new.c\nnew file mode 100644\n--- /dev/null\n+++ b/n/new.c\n"
        "@@ -0,0 +1 @@\n+new\n"
        "diff --git a/a.c b/a.c\ndeleted file mode 100644\n--- a/a.c\n+++ /dev/null\n"
        "@@ -1,3 +0,0 @@\n-one\n-two\n-three\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = patches.apply(tree, [patch(tmp_path, text)], scratch)
    assert made["a.c"] is None
    assert made["b.c"] is None
    assert made["c.c"] is not None
    assert made["c.c"].read_text() == "b\n"
    assert made["n/new.c"] == scratch / "n/new.c"


def test_patches_build_on_each_other(tree: Path, tmp_path: Path) -> None:
    second = patch(tmp_path, PATCH.replace("-two", "-zwei").replace("+zwei", "+drei"), "b.patch")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = patches.apply(tree, [patch(tmp_path), second], scratch)
    assert made["a.c"] is not None
    assert made["a.c"].read_text() == "one\ndrei\nthree\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PATCH.replace("two", "2").replace("zwei", "two"), "it is in this source already"),
        (PATCH.replace("a.c", "z.c"), r"no file z\.c"),
        (PATCH.replace("@@ -1,3 +1,3 @@", "@@ -1,9 +1,9 @@"), "unexpected end of file"),
    ],
)
def test_why_a_patch_does_not_apply(tree: Path, tmp_path: Path, text: str, message: str) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(UsageError, match=message):
        patches.apply(tree, [patch(tmp_path, text)], scratch)


def test_what_is_no_patch_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        patches.read(tmp_path / "none")
    with pytest.raises(UsageError, match="no unified diff"):
        patches.read(patch(tmp_path, "hello\n"))


# Configurations


def test_later_fragments_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.config"
    file.write_text("# a word\n\n# CONFIG_FS_DAX is not set\nCONFIG_NR_CPUS=4\n")
    wanted = fragment.merged(fragment.find([str(file)]))
    assert (wanted["CONFIG_FS_DAX"], wanted["CONFIG_NR_CPUS"]) == ("n", "4")
    config = "CONFIG_FS_DAX=y\nCONFIG_NR_CPUS=4\n"
    assert fragment.unmet({"CONFIG_FS_DAX": "n", "CONFIG_NR_CPUS": "4"}, config) == [
        "CONFIG_FS_DAX"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "iommufd"), ("./x.config", r"x\.config:1: FS_DAX=y is no line")],
)
def test_bad_fragments_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.config").write_text("FS_DAX=y\n")
    with pytest.raises(UsageError, match=message):
        fragment.find([name])


def test_the_base_has_what_every_machine_needs() -> None:
    groups = ("boot", "nvdimm", "vfio", "intel", "amd", "virtio")
    base = fragment.merged(fragment.find([]))
    assert kconfig.lacking(base, groups=groups) == []
    names = [file.stem for file in (guest_images() / "kernel").glob("*.config")]
    less = {"no_fs_dax", "kmem_module"}  # than the base
    whole = fragment.merged(fragment.find(name for name in names if name not in less))
    assert kconfig.lacking(whole, groups=("features",)) == []


# nvh kernel check


def test_check_names_rows_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVH_CACHE", str(tmp_path / "cache"))
    file = tmp_path / ".config"
    file.write_text(fragment.text(fragment.merged(fragment.find(["no_fs_dax"]))))
    assert main(["kernel", "check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "\nCONFIG_FS_DAX=y  # K2 " in said
    assert "\nCONFIG_IOMMUFD=y  # V20\n" in said
    assert " V1 V2 " in said
    assert "is not set  # S10" not in said
    file.write_text(f"{file.read_text()}CONFIG_FS_DAX=y\n")
    assert main(["kernel", "check", str(file)]) == 0
    assert "\n# CONFIG_FS_DAX is not set  # S10\n" in capsys.readouterr().out
    config = file.read_text().replace("CONFIG_BLK_DEV_WRITE_MOUNTED=y\n", "")
    for release, asked in (("6.1.192", False), ("6.8.0-rc1", True), ("6.12.3+deb", True)):
        file.write_text(f"#\n# Linux/x86 {release} Kernel Configuration\n#\n{config}")
        assert main(["kernel", "check", str(file)]) == 0
        line = "\nCONFIG_BLK_DEV_WRITE_MOUNTED=y  # S5\n"
        assert (line in capsys.readouterr().out) is asked
    file.write_text("CONFIG_MODULES=y\nCONFIG_PCI=y\n")
    assert main(["kernel", "check", str(file)]) == 1
    said = capsys.readouterr().out
    assert "no guest: CONFIG_EXT4_FS=m (the root image)" in said
    assert "can run whole: none" in said


# A real one


@pytest.mark.guest
def test_a_built_kernel_boots(tmp_path: Path) -> None:
    """The newest one in the store: building one takes too long for a test."""
    lab = Lab(Options())
    built = [entry for entry in lab.store.entries() if entry.kind == kbuild.KIND]
    if not built:
        pytest.skip("no kernel was built here: nvh kernel build debian-source:6.12")
    lab = Lab(Options(kernel=str(built[-1].path), accel="tcg"))
    with booted(lab.recipe(), tmp_path) as guest:
        assert guest.run("uname -r").stdout.strip() == lab.kernel.release
        assert guest.vfio("edu").driver == "vfio-pci"
        assert guest.namespace("devdax2m").device.startswith("/dev/dax")
