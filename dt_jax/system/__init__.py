# SPDX-License-Identifier: Apache-2.0
"""What surrounds a run: files, signals, memory, other processes."""
