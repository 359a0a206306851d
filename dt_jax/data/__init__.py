# SPDX-License-Identifier: Apache-2.0
"""Disk to `Batch`: NumPy only; a `Batch` and the flat store are what leaves."""
