# SPDX-License-Identifier: Apache-2.0
"""Formats that cannot be memory-mapped: one file each, found by being here.

Each has `NAME`; `files(path, split)`, what it would read there, or []; and
`read(files)`, the `Source` that they are.
"""
