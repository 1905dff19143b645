"""Builds, on the controller, everything that a playbook pushes to a machine: one folder of wheels per target.

A hive then needs no compiler, no package index and no way out to the internet. Nothing here needs more than
the standard library and pip, since `install` runs before any dependency is there.
"""
