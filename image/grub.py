"""GRUB's configuration, its environment block, and what a slot tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from image.board import Architecture, Board

TRIES = 3
ENVIRONMENT_SIZE = 1024
# Variables of RAUC's grub backend: ORDER, and for each slot NAME_OK and NAME_TRY.
FRESH_ENVIRONMENT = {"ORDER": "A B", "A_OK": "1", "A_TRY": "0", "B_OK": "0", "B_TRY": "0"}
MODULES = (
    "all_video",
    "boot",
    "configfile",
    "echo",
    "efi_gop",
    "fat",
    "linux",
    "loadenv",
    "minicmd",
    "normal",
    "part_gpt",
    "probe",
    "reboot",
    "regexp",
    "sleep",
    "test",
    "true",
)

PLATFORM_MODULES: dict[Architecture, tuple[str, ...]] = {
    Architecture.AMD64: (),
    Architecture.ARM64: ("fdt",),
}

_CONFIGURATION = """\
# Chooses a slot, counts the try, starts its kernel. Made by image/grub.py; docs/image.md explains.
set timeout=0
regexp --set=1:disk '^(.*),gpt[0-9]+$' "$root"
set environment="($root)/grub/grubenv"
load_env -f "$environment"
set chosen=""
if [ -z "$ORDER" ]; then
    # The environment block is damaged: counting has ended, starting has not.
    echo "skerry: no boot counters; taking the slots as they come"
    set ORDER="A B"
    set A_OK=1
    set B_OK=1
fi
for slot in $ORDER; do
@PICK@
done
if [ -z "$chosen" ]; then
    echo "skerry: no slot has a try left; counting from the start"
    for slot in $ORDER A B; do
@RESET@
    done
fi
save_env -f "$environment" ORDER A_OK A_TRY B_OK B_TRY
if [ "$chosen" = "B" ]; then
    set boot="$disk,gpt4"
    set try="$B_TRY"
else
    set chosen="A"
    set boot="$disk,gpt2"
    set try="$A_TRY"
fi
probe --set=partition --part-uuid "($boot)"
source "($boot)/slot.cfg"
echo "Skerry $skerry_version, slot $chosen, try $try of @TRIES@"
linux "($boot)/vmlinuz" skerry.boot=$partition rauc.slot=$chosen $skerry_cmdline
initrd "($boot)/initrd"
if [ -f "($boot)/board.dtb" ]; then
    devicetree "($boot)/board.dtb"
fi
boot
echo "skerry: slot $chosen did not start; restarting"
sleep 5
reboot
"""


@dataclass(frozen=True, slots=True)
class Verity:
    """What opens a root: its hash (hex), the salt (hex) and the number of 4 KiB data blocks."""

    root_hash: str
    salt: str
    blocks: int


def configuration() -> str:
    """Return grub.cfg: the same on every board and in every version."""
    pick = "\n".join(_pick(slot) for slot in "AB")
    reset = "\n".join(_reset(slot, number) for slot, number in (("A", 2), ("B", 4)))
    return (
        _CONFIGURATION.replace("@PICK@", pick)
        .replace("@RESET@", reset)
        .replace("@TRIES@", str(TRIES))
    )


def _pick(slot: str) -> str:
    # GRUB cannot add: one branch for each number of tries that are behind us.
    branches = [f'        if [ -z "${slot}_TRY" -o "${slot}_TRY" = "0" ]; then']
    for tried in range(TRIES):
        if tried:
            branches.append(f'        elif [ "${slot}_TRY" = "{tried}" ]; then')
        branches.append(f"            set {slot}_TRY={tried + 1}")
        branches.append(f"            set chosen={slot}")
    lines = [
        f'    if [ -z "$chosen" -a "$slot" = "{slot}" -a "${slot}_OK" = "1" ]; then',
        *branches,
        "        fi",
        "    fi",
    ]
    return "\n".join(lines)


def _reset(slot: str, number: int) -> str:
    # A slot that was never written has no kernel and is no candidate.
    return "\n".join(
        (
            f'        if [ "$slot" = "{slot}" -a -f "($disk,gpt{number})/vmlinuz" ]; then',
            f"            set {slot}_OK=1",
            '            if [ -z "$chosen" ]; then',
            f"                set chosen={slot}",
            f"                set {slot}_TRY=1",
            f'            elif [ "$chosen" != "{slot}" ]; then',
            f"                set {slot}_TRY=0",
            "            fi",
            "        fi",
        )
    )


def environment_block(variables: Mapping[str, str]) -> bytes:
    """Return a grubenv file: 1024 bytes that GRUB overwrites in place."""
    text = "# GRUB Environment Block\n" + "".join(
        f"{name}={value}\n" for name, value in variables.items()
    )
    return text.encode().ljust(ENVIRONMENT_SIZE, b"#")


def slot_configuration(board: Board, version: str, verity: Verity) -> str:
    """Return slot.cfg, which lies beside the kernel and belongs to the version in that slot."""
    words = [
        *(f"console={console}" for console in board.kernel.consoles),
        f"roothash={verity.root_hash}",
        f"skerry.verity={verity.salt}:{verity.blocks}",
        # A panic restarts after 10 s, and costs the slot a try. `gpt`: the backup table counts too.
        "panic=10",
        "gpt",
        "ro",
        "loglevel=5",
        "systemd.gpt_auto=no",
        "systemd.show_status=auto",
        *board.kernel.command_line,
    ]
    return f'set skerry_version="{version}"\nset skerry_cmdline="{" ".join(words)}"\n'
