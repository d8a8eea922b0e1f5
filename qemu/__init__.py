"""Machines in QEMU and the networks between them (workstation only)."""
