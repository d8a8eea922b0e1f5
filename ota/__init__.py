"""Updates of a node: RAUC over D-Bus, the trial of a new slot, and the commands for both.

Pure: :mod:`ota.trial` (what a boot means, what may be installed), :mod:`ota.explain` (RAUC's words
into ours), :mod:`ota.grubenv`. Edges: :mod:`ota.rauc` (D-Bus), :mod:`ota.records` (files),
:mod:`ota.node` (what was booted), :mod:`ota.postmortem`. :mod:`ota.update` joins them.
"""
