"""Builds root file systems, disk images and update bundles (workstation only)."""
