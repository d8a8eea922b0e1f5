"""Disk layout, GRUB's configuration, RAUC's, and the bundle's manifest."""

from __future__ import annotations

import itertools
import re
import uuid
from io import BytesIO
from pathlib import Path

import pytest

from image import board, grub, layout, payload
from image.artifacts import Artifacts
from image.bundle import rauc_manifest
from image.disk import copy_sparse, replace
from image.errors import BuildError
from image.layout import MIB
from image.payload import Release
from image.slot import Sealed

NODE = board.load("x86_64")
RELEASE = Release("1.2.3", "x86_64", "0123456789abcdef", "c0ffee")
VERITY = grub.Verity("ab" * 32, "cd" * 32, 35000)


def test_partitions_are_aligned_and_do_not_touch_each_other_or_the_tables() -> None:
    table = layout.partitions()
    assert table[0].start >= 34 * layout.SECTOR
    for item in table:
        assert item.start % MIB == 0
        assert item.size % MIB == 0
    for before, after in itertools.pairwise(table):
        assert before.start + before.size <= after.start
    assert layout.disk_size() - (table[-1].start + table[-1].size) >= 33 * layout.SECTOR


def test_the_slots_are_alike_and_where_grub_looks() -> None:
    numbers = {item.name: item.number for item in layout.partitions()}
    assert numbers["skerry-boot-a"] == 2
    assert numbers["skerry-boot-b"] == 4
    for part in ("boot", "root"):
        assert (
            layout.partition(f"skerry-{part}-a").size == layout.partition(f"skerry-{part}-b").size
        )
    text = grub.configuration()
    assert 'set boot="$disk,gpt2"' in text
    assert 'set boot="$disk,gpt4"' in text


def test_identifiers_are_fixed_and_differ() -> None:
    table = layout.partitions()
    assert [item.uuid for item in table] == [item.uuid for item in layout.partitions()]
    every = {item.uuid for item in table} | {layout.identifier("disk")}
    assert len(every) == len(table) + 1
    for text in every:
        assert str(uuid.UUID(text)) == text


def test_the_partition_for_the_token_is_one_that_desktops_show() -> None:
    assert layout.partition("skerry-token").kind == "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"


def test_sfdisk_is_told_every_partition_in_sectors() -> None:
    script = layout.sfdisk_script(layout.partitions())
    assert "label: gpt\n" in script
    esp = layout.partition("skerry-esp")
    assert f"1 : start={esp.start // 512}, size={esp.size // 512}, type=C12A7328" in script
    assert script.count("\n6 : ") == 1
    assert "skerry-data" not in script, "the first boot makes it"


def test_what_is_too_large_is_refused_with_both_sizes() -> None:
    layout.check_fits("skerry-root-a", 700 * MIB)
    with pytest.raises(BuildError, match=r"701\.0 MiB .* 700 MiB"):
        layout.check_fits("skerry-root-a", 701 * MIB)


def test_grub_is_balanced_and_counts_to_three() -> None:
    lines = [line.strip() for line in grub.configuration().splitlines()]
    assert sum(line.startswith("if ") for line in lines) == lines.count("fi")
    assert sum(line.startswith("for ") for line in lines) == lines.count("done")
    assert not re.search(r"@\w+@", grub.configuration())
    for slot in "AB":
        assert [n for n in range(1, 6) if f"set {slot}_TRY={n}" in lines] == [1, 2, 3]


class Grub:
    """Runs the part of grub.cfg that chooses: enough of GRUB's language, and nothing else."""

    def __init__(self, variables: dict[str, str], kernels: set[str]) -> None:
        self.variables = variables
        self.kernels = kernels

    def boot(self) -> str:
        text = grub.configuration()
        begin = text.index('set chosen=""')
        end = text.index("save_env")
        self._run([line.strip() for line in text[begin:end].splitlines()])
        return self.variables["chosen"]

    def _run(self, lines: list[str]) -> None:
        position = 0
        while position < len(lines):
            line = lines[position]
            if line.startswith("if "):
                end = self._closing(lines, position, "if ", "fi")
                self._branch(lines[position:end])
                position = end
            elif line.startswith("for "):
                end = self._closing(lines, position, "for ", "done")
                match = re.fullmatch(r"for (\w+) in (.+); do", line)
                assert match
                for word in self._expand(match[2]).split():
                    self.variables[match[1]] = word
                    self._run(lines[position + 1 : end])
                position = end
            elif line.startswith("set "):
                name, _, value = line.removeprefix("set ").partition("=")
                self.variables[name] = self._expand(value.strip('"'))
            else:
                assert not line or line.startswith(("#", "echo ")), line
            position += 1

    def _branch(self, lines: list[str]) -> None:
        depth = 0
        starts = [0]
        for number, line in enumerate(lines):
            if line.startswith("if "):
                depth += 1
            elif line == "fi":
                depth -= 1
            elif depth == 1 and line.startswith("elif "):
                starts.append(number)
        for start, stop in itertools.pairwise([*starts, len(lines)]):
            match = re.fullmatch(r"(?:el)?if \[ (.+) \]; then", lines[start])
            assert match, lines[start]
            if self._test(match[1]):
                self._run(lines[start + 1 : stop])
                return

    def _test(self, text: str) -> bool:
        return any(
            all(self._atom(atom) for atom in option.split(" -a ")) for option in text.split(" -o ")
        )

    def _atom(self, text: str) -> bool:
        if match := re.fullmatch(r'-z "(.*)"', text):
            return not self._expand(match[1])
        if match := re.fullmatch(r'-f "\((.*)\)/vmlinuz"', text):
            return self._expand(match[1]) in self.kernels
        match = re.fullmatch(r'"(.*)" (!?=) "(.*)"', text)
        assert match, text
        same = self._expand(match[1]) == self._expand(match[3])
        return same if match[2] == "=" else not same

    def _expand(self, text: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: self.variables.get(match[1], ""), text)

    @staticmethod
    def _closing(lines: list[str], position: int, opening: str, closing: str) -> int:
        depth = 0
        for number in range(position, len(lines)):
            depth += lines[number].startswith(opening)
            depth -= lines[number] == closing
            if depth == 0:
                return number
        raise AssertionError(f"no {closing} for line {lines[position]}")


def start(kernels: str = "AB", **variables: str) -> Grub:
    known = {"A": "hd0,gpt2", "B": "hd0,gpt4"}
    return Grub({"disk": "hd0", **variables}, {known[slot] for slot in kernels})


def test_a_bad_new_slot_is_tried_three_times_and_then_left_for_good() -> None:
    machine = start(ORDER="B A", A_OK="1", A_TRY="0", B_OK="1", B_TRY="0")
    chosen = []
    for _ in range(6):
        chosen.append(machine.boot())
        if chosen[-1] == "A":
            machine.variables["A_TRY"] = "0"  # A is healthy and marks itself good
    assert chosen == ["B", "B", "B", "A", "A", "A"]


def test_a_good_slot_stays() -> None:
    machine = start(ORDER="A B", A_OK="1", A_TRY="0", B_OK="1", B_TRY="0")
    for _ in range(5):
        assert machine.boot() == "A"
        assert machine.variables["A_TRY"] == "1"
        machine.variables["A_TRY"] = "0"


def test_a_slot_marked_bad_is_not_tried() -> None:
    assert start(ORDER="B A", A_OK="1", A_TRY="0", B_OK="0", B_TRY="0").boot() == "A"


def test_counters_alone_never_brick_a_machine() -> None:
    machine = start(ORDER="B A", A_OK="1", A_TRY="0", B_OK="1", B_TRY="0")
    assert [machine.boot() for _ in range(9)] == list("BBBAAABBB")


def test_an_empty_second_slot_is_no_candidate() -> None:
    machine = start("A", **grub.FRESH_ENVIRONMENT)
    assert [machine.boot() for _ in range(7)] == ["A"] * 7


def test_a_damaged_environment_still_starts() -> None:
    assert start().boot() == "A"
    assert start("B", ORDER="B A", A_OK="0", B_OK="0").boot() == "B"


def test_the_environment_block_is_what_grub_overwrites_in_place() -> None:
    block = grub.environment_block(grub.FRESH_ENVIRONMENT)
    assert len(block) == 1024
    assert block.startswith(b"# GRUB Environment Block\nORDER=A B\nA_OK=1\n")
    assert block.rstrip(b"#").endswith(b"\n")


def test_a_slot_tells_the_kernel_what_opens_its_root() -> None:
    text = grub.slot_configuration(NODE, "1.2.3", VERITY)
    assert 'set skerry_version="1.2.3"' in text
    words = re.search(r'skerry_cmdline="(.*)"', text)
    assert words
    line = words[1].split(" ")
    assert f"roothash={VERITY.root_hash}" in line
    assert f"skerry.verity={VERITY.salt}:{VERITY.blocks}" in line
    assert "panic=10" in line
    assert [word for word in line if word.startswith("console=")] == [
        "console=tty0",
        "console=ttyS0,115200n8",
    ]


def test_rauc_knows_both_slots_and_only_safe_bundles() -> None:
    text = payload.rauc_configuration(NODE)
    assert "compatible=skerry-x86_64\n" in text
    assert "bundle-formats=verity\n" in text
    for index, slot in enumerate("ab"):
        assert f"[slot.rootfs.{index}]\ndevice=/run/skerry/disk/root-{slot}\n" in text
        assert f"device=/run/skerry/disk/boot-{slot}\ntype=raw\nparent=rootfs.{index}\n" in text


def test_a_bundle_names_board_version_and_build() -> None:
    text = rauc_manifest(NODE, Sealed(Path("/x"), RELEASE, VERITY, 0))
    assert "compatible=skerry-x86_64\nversion=1.2.3\n" in text
    assert "build=0123456789abcdef\n" in text
    assert "format=verity\n" in text
    assert text.index("adaptive=block-hash-index") > text.index("[image.rootfs]")


def test_the_image_may_not_ship_the_workstations_packages() -> None:
    assert set(payload.SHIPPED) == {"skerry", "provisioning", "ota", "appliance"}


def test_copying_leaves_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"\0" * (3 * MIB) + b"end")
    target = BytesIO()
    copy_sparse(source, target, 5 * MIB)
    assert len(target.getvalue()) == 8 * MIB + 3
    assert target.getvalue().endswith(b"\0end")


def test_who_reads_an_image_has_it_whole_while_another_is_made(tmp_path: Path) -> None:
    source, target = tmp_path / "new.img", tmp_path / "root.img"
    target.write_bytes(b"old" * 1000)
    source.write_bytes(b"new" * 2000)
    with target.open("rb") as reader:
        begun = reader.read(3)
        replace(source, target)
        assert begun + reader.read() == b"old" * 1000
    assert target.read_bytes() == b"new" * 2000
    assert sorted(one.name for one in tmp_path.iterdir()) == ["new.img", "root.img"]


def test_the_lock_of_a_build_is_beside_what_it_leaves(tmp_path: Path) -> None:
    made = Artifacts.of("x86_64", tmp_path / "here")
    assert made.lock == tmp_path / "here.lock"
